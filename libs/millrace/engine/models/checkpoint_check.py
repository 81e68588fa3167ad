"""Whether a model folder can be served, told without reading its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from millrace.core.errors import UnsupportedModel
from millrace.engine.config_json import read_config
from millrace.engine.generation_config import read_generation_config
from millrace.engine.quantized import check_no_adapter, check_plain
from millrace.engine.routes import route_of
from millrace.engine.tensor_headers import TensorHeader, tensor_headers

from .llama_spec import LlamaSpec
from .llama_tensors import check_llama_headers


def check_checkpoint(folder: Path) -> str:
    """The route that a worker would take, "native" or "generic".

    Raises `UnsupportedModel`, with the reason, for a folder that no worker would serve. For the
    generic route torch and transformers are imported, which takes seconds.
    """
    config = read_config(folder)
    route, refusal = route_of(config)
    if refusal:
        raise UnsupportedModel(refusal)
    read_generation_config(folder)
    headers = check_storage(folder)
    with refusals_naming(folder):
        if route == "generic":
            from .generic_tensors import check_generic_headers, parse_config

            check_generic_headers(parse_config(folder), headers)
        else:
            check_llama_headers(LlamaSpec.from_config(config), headers)
    return route


def check_storage(folder: Path) -> list[TensorHeader]:
    """The headers of the weights; raises `UnsupportedModel` unless they are plain and a model's."""
    with refusals_naming(folder):
        names = {path.name for path in folder.iterdir()}
        check_no_adapter(names)
        headers = tensor_headers(folder)
        check_plain(headers, names)
        return headers


@contextmanager
def refusals_naming(folder: Path) -> Iterator[None]:
    """Puts the folder before the reason of a refusal that does not name it."""
    try:
        yield
    except UnsupportedModel as error:
        if str(folder) in error.message:
            raise
        raise UnsupportedModel(f"{folder}: {error.message}") from error
