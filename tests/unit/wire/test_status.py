"""Every error of the tree has its codes, and comes back as itself."""

from __future__ import annotations

import grpc
import pytest

from millrace.core.errors import InvalidRequest, MillraceError, Overloaded, error_classes
from millrace.wire.status import (
    CODES,
    error_from_reason,
    error_from_rich_status,
    http_status_of,
    status_of,
    to_rich_status,
)


def test_every_error_class_has_its_codes() -> None:
    assert set(error_classes().values()) == set(CODES)


def test_reasons_are_unique() -> None:
    assert len(error_classes()) == len(CODES)


@pytest.mark.parametrize("cls", CODES)
def test_error_survives_the_rich_status(cls: type[MillraceError]) -> None:
    error = cls("what went wrong", field="stop", metadata={"max": "4"}, retry_after_s=1.5)
    received = error_from_rich_status(to_rich_status(error))
    assert type(received) is cls
    assert (received.message, received.field) == ("what went wrong", "stop")
    assert (received.metadata, received.retry_after_s) == ({"max": "4"}, 1.5)


def test_absent_details_stay_absent() -> None:
    received = error_from_rich_status(to_rich_status(Overloaded("full")))
    assert received.field is None
    assert received.retry_after_s is None


def test_subclass_without_codes_takes_its_parents() -> None:
    class Strange(InvalidRequest):
        reason = "STRANGE"

    assert status_of(Strange("x")) is grpc.StatusCode.INVALID_ARGUMENT
    assert http_status_of(Strange("x")) == 400


def test_unknown_reason_becomes_internal() -> None:
    assert error_from_reason("FROM_THE_FUTURE", "x").reason == "INTERNAL"
