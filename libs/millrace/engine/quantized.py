"""Checkpoints whose weights are no plain numbers, or no model's: what made them, by name.

Decided from file names, config.json and the headers of the weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from millrace.core.errors import UnsupportedModel

from .tensor_headers import TensorHeader

PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
# Settings that tools leave beside the weights they made.
_METHOD_OF_FILE = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
# What stands beside a packed weight or in its place, the telling ones first.
_METHOD_OF_NAME = (
    (re.compile(r"\.g_idx$"), "gptq"),
    (re.compile(r"\.q(weight|zeros)$"), "gptq or awq"),
    (re.compile(r"\.(SCB|weight_format)$"), "bitsandbytes"),
    (re.compile(r"\.weight\.(absmax|quant_map|quant_state.*|nested_.*)$"), "bitsandbytes"),
    (re.compile(r"\.weight_(packed|shape|zero_point)$"), "compressed-tensors"),
    (re.compile(r"\.weight_scale(_inv|_2)?$"), "fp8"),
    (re.compile(r"\.W_q$"), "hqq"),
    (re.compile(r"_proj_(blocks|scales)$"), "mxfp4"),
)
_METHOD_OF_DTYPE = {
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
    "F8_E8M0": "mxfp4",
    "F4": "fp4",
    "I8": "int8",
    "U32": "mlx",
    "U8": "bitsandbytes",
}
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_TENSOR = re.compile(r"\.lora_|^base_model\.model\.")
_MERGE = "merge it into its base model first"


def declared_method(config: Mapping[str, Any]) -> str:
    """What config.json says its weights are quantized by; "" if it says nothing."""
    for part in (config, config.get("text_config")):
        if not isinstance(part, Mapping):
            continue
        if settings := part.get("quantization_config"):
            method = settings.get("quant_method") if isinstance(settings, Mapping) else None
            return str(method or "unknown")
        if part.get("compression_config"):
            return "compressed-tensors"
        if part.get("quantization"):
            return "mlx"
    return ""


def check_plain(headers: Collection[TensorHeader], file_names: Collection[str]) -> None:
    """Raises `UnsupportedModel` unless the weights are a model's own, in plain numbers."""
    for header in headers:
        if _ADAPTER_TENSOR.search(header.name):
            raise UnsupportedModel(f"tensor {header.name!r} is an adapter's (LoRA): {_MERGE}")
    if method := _method_of(headers, file_names):
        raise UnsupportedModel(
            f"weights quantized by {method} are not loaded; "
            "take the model in float32, float16 or bfloat16"
        )


def check_no_adapter(file_names: Collection[str]) -> None:
    """Raises `UnsupportedModel` if the files of an adapter lie in the folder.

    Beside a model too: whoever put them there expects the adapter's answers.
    """
    for name in _ADAPTER_FILES:
        if name in file_names:
            raise UnsupportedModel(f"{name} is an adapter's (LoRA): {_MERGE}, or take it away")


def _method_of(headers: Collection[TensorHeader], file_names: Collection[str]) -> str:
    for pattern, method in _METHOD_OF_NAME:
        if any(pattern.search(header.name) for header in headers):
            if " or " in method:
                return next((m for f, m in _METHOD_OF_FILE.items() if f in file_names), method)
            return method
    weights = (header for header in headers if header.name.endswith(("weight", "_proj")))
    foreign = [header.dtype for header in weights if header.dtype not in PLAIN_DTYPES]
    return _METHOD_OF_DTYPE.get(foreign[0], foreign[0]) if foreign else ""
