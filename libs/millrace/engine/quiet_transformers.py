"""What transformers has to say is for its own users: here, checks say it, or nothing is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers from drawing on the terminal and from warning there."""
    from transformers.utils import logging

    switch: Any = logging
    was_on, verbosity = switch.is_progress_bar_enabled(), switch.get_verbosity()
    switch.disable_progress_bar()
    switch.set_verbosity_error()
    try:
        yield
    finally:
        switch.set_verbosity(verbosity)
        if was_on:
            switch.enable_progress_bar()
