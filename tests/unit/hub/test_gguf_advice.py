"""What is said about architectures that are not imported is what the engine would do."""

from __future__ import annotations

import pytest
from gguf.constants import MODEL_ARCH_NAMES

from millrace.hub.gguf_advice import SERVED_AS_FOLDER, USE_FOLDER, advice_for
from millrace.hub.route import decide_route

# Types of checkpoints whose names are not those of the GGUF architecture.
OTHER_NAMES = {
    "clip": "clip_vision_model",
    "deepseek2-ocr": "deepseek_vl_v2",
    "falcon-h1": "falcon_h1",
    # Checkpoints of embedding models, which name no class with a head.
    "gemma-embedding": "",
    "gemma3n": "gemma3n",
    "glm-dsa": "glm_moe_dsa",
    "granitehybrid": "granitemoehybrid",
    "grok": "grok-1",
    "lfm2moe": "lfm2_moe",
    "llama-embed": "",
    "modern-bert": "modernbert",
    "nemotron_h_moe": "nemotron_h",
    "qwen2vl": "qwen2_vl",
    "qwen35": "qwen3_5",
    "qwen35moe": "qwen3_5_moe",
    "qwen3next": "qwen3_next",
    "qwen3vl": "qwen3_vl",
    "qwen3vlmoe": "qwen3_vl_moe",
    "t5encoder": "t5",
}


@pytest.mark.parametrize("architecture", MODEL_ARCH_NAMES.values())
def test_folder_is_advised_exactly_where_it_would_be_served(architecture: str) -> None:
    model_type = SERVED_AS_FOLDER.get(architecture) or OTHER_NAMES.get(
        architecture, architecture.replace("-", "_")
    )

    route, reason = decide_route({"model_type": model_type}) if model_type else ("refused", "")

    assert (advice_for(architecture) == USE_FOLDER) == (route != "refused"), reason


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_folder_of_a_mixture_of_experts_would_be_served(model_type: str) -> None:
    assert decide_route({"model_type": model_type})[0] == "generic"


@pytest.mark.parametrize("architecture", ["", "no such thing", "llama\n"])
def test_unknown_architecture_gets_no_advice(architecture: str) -> None:
    assert advice_for(architecture) != USE_FOLDER
