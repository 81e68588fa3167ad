"""What to do about a GGUF file that cannot be imported: advice that works, or none."""

from __future__ import annotations

from .route import decide_route

# GGUF architecture → model_type of the checkpoint it is made from, where that is not the same
# with "_" for "-".
_MODEL_TYPES = {
    "baichuan": "baichuan",
    "clip": "clip_vision_model",
    "codeshell": "codeshell",
    "command-r": "cohere",
    "deepseek2": "deepseek_v3",
    "exaone-moe": "exaone_moe",
    "falcon-h1": "falcon_h1",
    "gemma-embedding": "gemma3_text",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "glm-dsa": "glm_moe_dsa",
    "glm4moe": "glm4_moe",
    "gptneox": "gpt_neox",
    "granitehybrid": "granitemoehybrid",
    "grok": "grok-1",
    "hunyuan-dense": "hunyuan_v1_dense",
    "hunyuan-moe": "hunyuan_v1_moe",
    "jais": "jais",
    "lfm2moe": "lfm2_moe",
    "llama4": "llama4_text",
    "mimo2": "mimo_v2_flash",
    "mistral3": "ministral3",
    "mistral4": "mistral4",
    "modern-bert": "modernbert",
    "nemotron_h_moe": "nemotron_h",
    "phi2": "phi",
    "qwen2moe": "qwen2_moe",
    "qwen2vl": "qwen2_vl",
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "qwen3vl": "qwen3_vl",
    "qwen3vlmoe": "qwen3_vl_moe",
    "starcoder": "gpt_bigcode",
    "t5encoder": "t5",
}


def advice_for(architecture: str) -> str:
    """What to do about a model of a GGUF architecture that is not imported."""
    model_type = _MODEL_TYPES.get(architecture, architecture.replace("-", "_"))
    return advice_for_type(model_type)


def advice_for_type(model_type: str) -> str:
    """The same for a `model_type` of config.json, asked of the engine."""
    _, refusal = decide_route({"model_type": model_type})
    if refusal:
        return f"its safetensors folder is not served yet either: {refusal}"
    return "use the model's safetensors folder instead"
