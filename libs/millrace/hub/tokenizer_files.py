"""What makes the tokenizer of a model folder: tokenizer.json, the named tokens, the chat template.

Read without transformers, whose import costs over a second and 200 MB per process. Where it would
change the tokenizer.json of the folder, or make one, what it makes is built once and read instead
(`tokenizer_build`); tests hold the ids against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.config.home import Home
from millrace.core.errors import ConfigError

from .tokenizer_build import SETTINGS_NAME, built_tokenizer, kept_folder
from .tokenizer_ids import check_ids, model_vocab_size

# Classes that take a tokenizer.json as it is.
PLAIN_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
# Model types for which transformers takes its own class though the settings name a plain one.
OVERRIDING_MODEL_TYPES = frozenset(
    {
        "hyperclovax_vision_v2",
        "qwen2",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen4_exp",
        "siglip2",
    }
)
# Settings that change no id; whatever else is there, transformers has the last word.
_HARMLESS_SETTINGS = frozenset(
    {
        "backend",
        "clean_up_tokenization_spaces",
        "is_local",
        "local_files_only",
        "model_input_names",
        "model_max_length",
        "padding_side",
        "tokenizer_class",
        "truncation_side",
    }
)
# Files in which older versions kept more tokens.
_TOKEN_FILES = ("added_tokens.json", "special_tokens_map.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """`description`: tokenizer.json, every added token in it.

    named_tokens: "bos_token" and so on to their strings. template: source of the chat template,
    None if there is none or it cannot be read; then `template_fault` says why.
    """

    description: dict[str, Any]
    named_tokens: dict[str, str]
    template: str | None = None
    template_fault: str = ""


def read_tokenizer_files(folder: Path, home: Home) -> TokenizerFiles:
    """Reads the tokenizer of a model folder, as transformers has it.

    Raises ConfigError, naming the folder, for a tokenizer that is missing or broken, cannot be
    built here, or gives ids that the model does not have.
    """
    if not folder.is_dir():
        raise ConfigError(f"model folder {folder} does not exist; fetch the model again")
    config = _read_json(folder / "config.json") or {}
    settings = _read_json(folder / SETTINGS_NAME) or {}
    template, template_fault = _read_template(folder, settings.pop("chat_template", None))
    try:
        files = _read_plain(folder, settings, config)
        description, named = files or _read_built(built_tokenizer(folder, settings, home))
        description["added_tokens"] = description.get("added_tokens") or []
        check_ids(description, model_vocab_size(config), named, template or "")
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error.message}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}: tokenizer.json cannot be read: {error!r}") from error
    description |= {"truncation": None, "padding": None}
    return TokenizerFiles(description, named, template, template_fault)


def tokenizer_build_of(folder: Path, home: Home) -> Path:
    """Where what was built of a model folder's tokenizer is kept, if it had to be built."""
    settings = _read_json(folder / SETTINGS_NAME) or {}
    settings.pop("chat_template", None)
    return kept_folder(folder, settings, home)


def _read_plain(
    folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]] | None:
    """tokenizer.json and the named tokens, if transformers takes them as they are; else None."""
    named = _named_tokens(settings)
    is_plain = (
        settings.get("tokenizer_class") in PLAIN_CLASSES
        and config.get("model_type") not in OVERRIDING_MODEL_TYPES
        and "model_name" not in config
        and all(_is_harmless(*setting) for setting in settings.items())
        and not any((folder / name).exists() for name in _TOKEN_FILES)
    )
    description = _read_json(folder / "tokenizer.json") if is_plain else None
    if description is None or not _special_tokens(description).issuperset(named.values()):
        return None
    return description, named


def _is_harmless(name: str, value: Any) -> bool:
    is_name = name.endswith("_token") and (value is None or isinstance(value, str))
    return is_name or name in _HARMLESS_SETTINGS


def _read_built(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    description, settings = (
        _read_json(folder / "tokenizer.json"),
        _read_json(folder / SETTINGS_NAME),
    )
    if description is None or settings is None:
        raise ConfigError(f"{folder} is incomplete; delete it, and it is built again")
    return description, _named_tokens(settings)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no settings")
    return content


def _named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value
        for name, value in settings.items()
        if name.endswith("_token") and isinstance(value, str) and value
    }


def _special_tokens(description: Mapping[str, Any]) -> set[str]:
    tokens = description.get("added_tokens") or ()
    return {token["content"] for token in tokens if token["special"] and not token["normalized"]}


def _read_template(folder: Path, setting: Any) -> tuple[str | None, str]:
    """The chat template and what is wrong with it: the file goes before the setting; of several
    named templates it is the default one."""
    path = folder / "chat_template.jinja"
    try:
        return path.read_text("utf-8"), ""
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        return None, f"{path.name} cannot be read: {error}"
    if isinstance(setting, list):
        try:
            setting = {entry["name"]: entry["template"] for entry in setting}
        except (KeyError, TypeError) as error:
            return None, f"chat_template of {SETTINGS_NAME} cannot be read: {error!r}"
    if isinstance(setting, dict):
        setting = setting.get("default")
    if setting is None or isinstance(setting, str):
        return setting, ""
    return None, f"chat_template of {SETTINGS_NAME} is no text"
