"""GET /v1/models, GET /v1/models/{id}, GET /model/info."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from millrace.gateway.directory import ServedModel

from .edge import HttpEdge
from .replies import camel_cased


def model_routes(edge: HttpEdge) -> list[Route]:
    """The routes about models."""

    async def list_models(request: Request) -> JSONResponse:
        models = [openai_model(model) for model in edge.directory.list()]
        return JSONResponse({"object": "list", "data": models})

    async def get_model(request: Request) -> JSONResponse:
        name = request.path_params["name"]
        if not name:
            # The list's path with a slash, not the default model.
            raise HTTPException(404)
        return JSONResponse(openai_model(edge.directory.get(name)))

    async def model_info(request: Request) -> JSONResponse:
        name = request.query_params.get("model", "")
        return JSONResponse(plain_model(edge.directory.get(name)))

    return [
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{name:path}", get_model, methods=["GET"]),
        Route("/model/info", model_info, methods=["GET"]),
    ]


def openai_model(model: ServedModel) -> dict[str, Any]:
    """A model as the OpenAI API lists it, with the length of its context."""
    return {
        "id": model.info.name,
        "object": "model",
        "created": model.created_unix_s,
        "owned_by": "millrace",
        "aliases": list(model.info.aliases),
        "max_model_len": model.info.max_model_len,
    }


def plain_model(model: ServedModel) -> dict[str, Any]:
    """Everything that is known of a loaded model; counts are those of the loaded tensors."""
    info = model.info
    return {
        "model": info.name,
        "aliases": list(info.aliases),
        "revision": info.revision,
        "architecture": info.architecture,
        "route": info.route,
        "dtype": info.dtype,
        "quantization": info.quantization,
        "parameters": info.num_parameters,
        "bytes": info.weight_bytes,
        "maxModelLen": info.max_model_len,
        "vocabSize": info.vocab_size,
        "eosTokenIds": list(info.eos_token_ids),
        "defaultSampling": camel_cased(info.default_sampling),
        "workers": model.num_workers,
        "config": _config(info.config_json),
    }


def _config(config_json: str) -> Any:
    """The checkpoint's config.json; what is no number in JSON, such as Infinity, as null."""
    try:
        return json.loads(config_json, parse_constant=lambda name: None, parse_float=_finite)
    except ValueError:
        return {}


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
