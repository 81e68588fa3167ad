"""Texts that must not be told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.core.secret import Secret, redacted


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cannot reach nats://bob:hunter2@h:4222 now", "cannot reach nats://***@h:4222 now"),
        ("redis://:hun#t/e?r@2@h:1/0", "redis://***@h:1/0"),
        ("--redis-ulr=redis://:hunter2@h", "--redis-ulr=redis://***@h"),
        ("a http://u:p@h and http://v:q@i", "a http://***@h and http://***@i"),
        ("https://user:pa'ss@proxy:3128", "https://***@proxy:3128"),
        ("nats://bob:***@h and nats://***@h", "nats://bob:***@h and nats://***@h"),
        ("nats://hunter2@x:***@h", "nats://***@h"),
        ("http://h/path and bob@example.org", "http://h/path and bob@example.org"),
        ("no URL here: bob@example.org", "no URL here: bob@example.org"),
    ],
)
def test_credentials_of_urls_are_taken_out_of_any_text(text: str, clean: str) -> None:
    assert redacted(text) == clean


@given(password=st.text(min_size=8).filter(lambda text: not any(map(str.isspace, text))))
def test_no_password_without_a_blank_survives(password: str) -> None:
    assert password not in redacted(f"failed: nats://bob:{password}@host:1 (refused)")


def test_a_secret_tells_only_whether_it_is_set() -> None:
    assert (str(Secret("hunter2")), str(Secret(""))) == ("***", "")
    assert "hunter2" not in repr(Secret("hunter2"))
    assert Secret("hunter2") and not Secret("")
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("hunter2").reveal() == "hunter2"
