"""What the `tokenizers` library raises: bare Exception, and panics, which are no Exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from millrace.core.errors import InternalError

_PANIC = "PanicException"


@contextmanager
def library_errors_told() -> Iterator[None]:
    """Raises InternalError in place of any of them; its cause is for logs, not for clients."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise InternalError("the tokenizer failed") from error
