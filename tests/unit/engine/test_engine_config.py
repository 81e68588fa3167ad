"""Settings: what "auto" becomes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.core.errors import ConfigError
from millrace.engine import config as config_module
from millrace.engine.config import EngineConfig, resolve_config


def make(**settings):
    return EngineConfig(model_path=Path("x"), name="x", **settings)


@pytest.mark.parametrize(
    ("declared", "has_bf16", "has_cuda", "expected"),
    [
        ("bfloat16", True, False, ("cpu", "bfloat16")),
        ("bfloat16", False, False, ("cpu", "float32")),
        ("float16", True, False, ("cpu", "float32")),
        (None, True, False, ("cpu", "float32")),
        ("bfloat16", False, True, ("cuda", "bfloat16")),
        ("float16", False, True, ("cuda", "float16")),
    ],
)
def test_auto_follows_checkpoint_and_machine(monkeypatch, declared, has_bf16, has_cuda, expected):
    monkeypatch.setattr(config_module, "cpu_has_bf16", lambda: has_bf16)

    resolved = resolve_config(make(), {"torch_dtype": declared}, has_cuda=has_cuda)

    assert (resolved.device, resolved.dtype) == expected
    assert resolved.backend == "torch"
    assert resolved.num_threads >= 1


def test_what_is_set_is_kept():
    asked = make(dtype="float32", device="cpu", backend="torch", num_threads=3)

    assert resolve_config(asked, {"dtype": "bfloat16"}, has_cuda=True) == asked


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int4"}, "dtype is 'int4'; allowed are auto, float32"),
        ({"route": "fast"}, "route is 'fast'"),
        ({"block_size": 0}, "block_size is 0; the least is 1"),
        ({"max_num_seqs": -1}, "max_num_seqs is -1"),
    ],
)
def test_value_out_of_range_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        make(**settings)
    assert error.value.field in settings


def test_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        resolve_config(make(device="cuda"), {}, has_cuda=False)
    with pytest.raises(ConfigError, match="allowed are auto, cpu and cuda"):
        resolve_config(make(device="tpu"), {}, has_cuda=True)
