"""Chat templates: the environment that published templates expect, and its limits."""

from __future__ import annotations

import pytest

from millrace.core.errors import ConfigError, InvalidRequest
from millrace.tokenizer import chat
from millrace.tokenizer.chat import ChatTemplate

USER = [{"role": "user", "content": "Hi <b>"}]


def _render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(USER)


def test_named_tokens_and_generation_prompt_are_variables() -> None:
    assert _render("{{ bos_token }}{{ add_generation_prompt }}{{ tools is none }}") == "<s>TrueTrue"


def test_blocks_leave_no_white_space_behind() -> None:
    assert (
        _render("{% for m in messages %}\n    {% if true %}\nx\n    {% endif %}\n{% endfor %}")
        == "x\n"
    )


def test_tojson_does_not_escape() -> None:
    assert _render("{{ messages[0].content | tojson }}") == '"Hi <b>"'


def test_loop_controls_and_generation_tag_are_known() -> None:
    source = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert _render(source + "{% generation %}g{% endgeneration %}") == "01g"


def test_date_of_today_is_available() -> None:
    assert _render("{{ strftime_now('%Y') }}").startswith("2")


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no such order') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[5].content.x }}",
        "{{ unknown.attribute }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_whatever_a_template_raises_is_an_invalid_request(source: str) -> None:
    with pytest.raises(InvalidRequest, match="refuses the messages: .") as caught:
        _render(source)
    assert caught.value.field == "messages"


def test_endless_output_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_RENDERED_CHARS", 100)
    with pytest.raises(InvalidRequest, match="over 100 characters"):
        _render("{% for i in range(90000) %}{{ i }},{% endfor %}")


def test_template_that_never_ends_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_LOOP_TURNS", 1000)
    loops = "".join(f"{{% for i{level} in range(30) %}}" for level in range(3))
    with pytest.raises(InvalidRequest, match="over 1000 turns"):
        _render(loops + "{% endfor %}" * 3)
    assert _render("{% for i in range(999) %}{% endfor %}x") == "x"


def test_syntax_error_names_its_line() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        ChatTemplate("\n{% if %}", {})


@pytest.mark.parametrize("source", ["{% for %}", "{{ x | none_such }}", "{{ " + "(" * 5000 + " }}"])
def test_broken_template_is_a_config_error(source: str) -> None:
    with pytest.raises(ConfigError, match="chat template is broken: ."):
        ChatTemplate(source, {})


def test_literals_are_what_the_template_can_write() -> None:
    literals = ChatTemplate("<a>{{ '<b>' + role }}{# <c> #}", {}).literals
    assert "<a>" in literals
    assert "<b>" in literals
    assert "<c>" not in literals
