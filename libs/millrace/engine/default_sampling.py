"""The sampling that a checkpoint wants for requests that are silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from millrace.core.errors import InvalidRequest
from millrace.core.sampling import SamplingDefaults, SamplingParams

from .generation_config import GenerationDefaults


def default_sampling(
    wanted: GenerationDefaults, report: Callable[[str], None] = lambda text: None
) -> SamplingDefaults:
    """What of it a request may say too; a value out of range is reported and left out."""
    taken: dict[str, Any] = {}
    for each in fields(SamplingDefaults):
        value = getattr(wanted, each.name)
        try:
            SamplingParams(**{each.name: value})
        except InvalidRequest as error:
            report(f"generation_config.json is not followed: {error.message}")
        else:
            taken[each.name] = value
    return SamplingDefaults(**taken)
