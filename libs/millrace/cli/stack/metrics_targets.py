"""Where Prometheus finds the processes of the running stack: a file for its `file_sd_configs`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from millrace.config.home import Home
from millrace.config.replaced_file import EVERYBODY_READS, replace_file

from .wiring import Instance

FILE_NAME = "prometheus-targets.json"


def targets_of(instances: Iterable[Instance]) -> list[dict[str, Any]]:
    """One group per process: its address, and the labels that tell `worker-1` from `worker-2`."""
    return [
        {
            "targets": [instance.metrics_address],
            "labels": {"service": instance.spec.name, "instance": instance.name},
        }
        for instance in instances
        if instance.metrics_address
    ]


def write_targets(home: Home, instances: Iterable[Instance]) -> None:
    """Replaces the file in one step."""
    text = json.dumps(targets_of(instances), indent=2)
    replace_file(home.run / FILE_NAME, text, EVERYBODY_READS)


def remove_targets(home: Home) -> None:
    """Says that nothing is to be scraped."""
    (home.run / FILE_NAME).unlink(missing_ok=True)
