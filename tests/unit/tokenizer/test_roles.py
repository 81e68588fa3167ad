"""Which roles templates of every style know; all others are refused with these."""

from __future__ import annotations

import pytest

from millrace.core.errors import InvalidRequest
from millrace.testing.tokenizers import CHATML, INSTRUCT
from millrace.tokenizer.chat import ChatTemplate
from millrace.tokenizer.roles import STANDARD_ROLES, KnownRoles

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'ipython' %}{{ '<|tool|>' + message.content | tojson }}"
    "{% else %}{{ '<|' + message.role + '|>' + message.content }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start>' + role + '\n' + message['content'] | trim + '<end>' }}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'U' + message['content'] }}"
    "{% elif message['role'] == 'system' %}{{ 'S' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ 'A' + message['content'] }}{% endif %}{% endfor %}"
)
GLM = (
    "{% for m in messages %}{% if m.role in ['user', 'assistant', 'observation', 'system'] %}"
    "<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
)
FALCON = "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
MAPPED = (
    "{% set names = {'user': 'Human', 'assistant': 'AI', 'critic': 'Critic'} %}"
    "{% for m in messages %}{{ names[m.role] + ': ' + m.content }}\n{% endfor %}"
)
OTHERS_ARE_USERS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A{% else %}U{% endif %}: {{ m.content }}"
    "{% endfor %}"
)
SYSTEM_WITH_USER = (
    "{% for m in messages %}{% if m.role == 'user' %}[{% if loop.previtem is defined and "
    "loop.previtem.role == 'system' %}{{ loop.previtem.content }}{% endif %}{{ m.content }}]"
    "{% elif m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
)
WORDY = (
    "{% for m in messages %}{% if 'content' in m and m.role != 'robot' %}"
    "{{ '<' + m.role + '>' + m.content }}{% endif %}{% endfor %}"
)
DEAF = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
ALL = set(STANDARD_ROLES)


@pytest.mark.parametrize(
    ("source", "known"),
    [
        (CHATML, ALL),
        (INSTRUCT, {"user", "assistant"}),
        (LLAMA3, ALL | {"ipython"}),
        (GEMMA, ALL),
        (ZEPHYR, {"user", "assistant", "system"}),
        (GLM, {"user", "assistant", "system", "observation"}),
        (FALCON, ALL),
        (MAPPED, {"user", "assistant", "critic"}),
        (OTHERS_ARE_USERS, ALL),
        (SYSTEM_WITH_USER, {"user", "assistant", "system"}),
        (WORDY, ALL),
        (DEAF, set()),
    ],
)
def test_roles_that_a_template_knows(source: str, known: set[str]) -> None:
    roles = KnownRoles(ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}))
    assert set(roles.roles) == known
    for role in known:
        roles.check(role, "messages[0].role")


@pytest.mark.parametrize("role", ["robot", "content", "im_start", "User", "", "user\nx", "u" * 99])
@pytest.mark.parametrize("source", [CHATML, INSTRUCT, LLAMA3, GEMMA, FALCON, WORDY])
def test_other_role_is_refused_with_the_known_ones(source: str, role: str) -> None:
    roles = KnownRoles(ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}))

    with pytest.raises(InvalidRequest, match="template knows: .*user.*assistant") as caught:
        roles.check(role, "messages[3].role")

    assert caught.value.field == "messages[3].role"
    assert repr(role[:64]) in caught.value.message
    assert len(caught.value.message) < 250


def test_role_that_the_template_leaves_out_without_a_word_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'developer'; the roles"):
        KnownRoles(ChatTemplate(ZEPHYR, {})).check("developer", "messages[0].role")


@pytest.mark.parametrize(("source", "role"), [(INSTRUCT, "system"), (INSTRUCT, "tool")])
def test_role_that_the_template_refuses_itself_is_left_to_it(source: str, role: str) -> None:
    roles = KnownRoles(ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}))
    roles.check(role, "messages[0].role")
    assert role not in roles.roles


def test_template_without_ear_for_text_says_so() -> None:
    with pytest.raises(InvalidRequest, match="none that says plain text"):
        KnownRoles(ChatTemplate(DEAF, {})).check("user", "messages[0].role")
