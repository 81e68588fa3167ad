"""As much of PromQL as tells whether a query finds anything: its selectors, and what they match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_SELECTOR = re.compile(r"\b((?:millrace|process)_\w+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Selector:
    """A series name and what its labels must be."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]

    def finds(self, name: str, labels: Mapping[str, str]) -> bool:
        return name == self.name and all(
            _matches(labels.get(label, ""), how, value) for label, how, value in self.matchers
        )


def selectors(query: str) -> list[Selector]:
    """Those of a query, Grafana's variables meaning everything."""
    for variable in ("$model", "$instance"):
        query = query.replace(variable, ".*")
    return [
        Selector(found[1], tuple(_MATCHER.findall(found[2] or "")))
        for found in _SELECTOR.finditer(query)
    ]


def found(query: str, samples: Iterable[Sample]) -> dict[Selector, list[Sample]]:
    """What each selector of a query finds."""
    have = list(samples)
    return {
        selector: [each for each in have if selector.finds(each.name, each.labels)]
        for selector in selectors(query)
    }


def scraped(page: str, **labels: str) -> Iterator[Sample]:
    """The samples of a metrics page, with the labels of its target as Prometheus adds them."""
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            theirs = {f"exported_{k}" if k in labels else k: v for k, v in sample.labels.items()}
            yield sample._replace(labels={**theirs, **labels})


def _matches(value: str, how: str, wanted: str) -> bool:
    if how in ("=", "!="):
        return (value == wanted) == (how == "=")
    return (re.fullmatch(wanted, value) is not None) == (how == "=~")
