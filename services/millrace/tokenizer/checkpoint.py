"""The tokenizer files of a model folder: tokenizer.json, its settings, and the chat template.

What transformers reads from such a folder is read here without importing it, since that costs over
a second and 200 MB per process; tests hold the results against transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.errors import ConfigError

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class Checkpoint:
    """`description`: tokenizer.json, with every added token that the other files name.

    named_tokens: "bos_token" and so on to their strings. template: source of the chat template.
    """

    description: dict[str, Any]
    named_tokens: dict[str, str]
    template: str | None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads a model folder. Raises ConfigError where it holds no tokenizer or a broken one."""
    description = _read_json(folder / "tokenizer.json")
    if description is None:
        reason = "has no tokenizer.json" if folder.is_dir() else "does not exist"
        raise ConfigError(
            f"model folder {folder} {reason}; fetch the model again, or save its tokenizer with "
            "transformers' save_pretrained"
        )
    settings = _read_json(folder / "tokenizer_config.json") or {}
    if "added_tokens_decoder" not in settings:
        settings |= _read_json(folder / "special_tokens_map.json") or {}
    named = _named_tokens(settings)
    try:
        entries = _added_tokens(description, settings, named)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}: the added tokens cannot be read: {error!r}") from error
    description = {**description, "added_tokens": entries, "truncation": None, "padding": None}
    return Checkpoint(description, named, _read_template(folder, settings))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no settings")
    return content


def _content(token: Any) -> str | None:
    """A token is written as its string, or as an object with flags."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) and content else None


def _named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """In the order in which missing ones get their ids."""
    named = {}
    for name, value in settings.items():
        if name.endswith("_token") and (content := _content(value)):
            named[name] = content
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        named |= {name: content for name, value in extra.items() if (content := _content(value))}
    standard = {name: named[name] for name in NAMED_TOKENS if name in named}
    return standard | named


def _more_special_tokens(settings: Mapping[str, Any]) -> Iterator[str]:
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    if isinstance(extra, list):
        for token in extra:
            if content := _content(token):
                yield content


def _added_tokens(
    description: Mapping[str, Any], settings: Mapping[str, Any], named: Mapping[str, str]
) -> list[dict[str, Any]]:
    entries = {token["content"]: dict(token) for token in description.get("added_tokens") or ()}
    declared = settings.get("added_tokens_decoder") or {}
    for number, token in sorted((int(number), token) for number, token in declared.items()):
        entries.setdefault(token["content"], _entry(**token, id=number))
    for content in (*named.values(), *_more_special_tokens(settings)):
        entries.setdefault(content, _entry(content))["special"] = True
    return list(entries.values())


def _entry(content: str, *, id: int = 0, **flags: Any) -> dict[str, Any]:
    """An added token; its id follows from the vocabulary and the order, not from `id`."""
    entry = {"id": id, "content": content, "special": True, "normalized": False}
    entry |= {"single_word": False, "lstrip": False, "rstrip": False}
    return entry | {name: value for name, value in flags.items() if name in entry}


def _read_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The template file goes before the settings; of several named templates, the default one."""
    path = folder / "chat_template.jinja"
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    template = settings.get("chat_template")
    if isinstance(template, list):
        by_name = {entry["name"]: entry["template"] for entry in template}
        template = by_name.get("default")
    return template if isinstance(template, str) else None
