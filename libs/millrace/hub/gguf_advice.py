"""What to do about a GGUF file that cannot be imported: advice that works, or none."""

from __future__ import annotations

USE_FOLDER = "use the model's safetensors folder, unquantized, instead"

# GGUF architecture → model_type of the checkpoint it is made from, for those that are served from
# a folder. Written down, since asking transformers takes seconds; tests hold it against the engine.
SERVED_AS_FOLDER = {
    "afmoe": "afmoe",
    "apertus": "apertus",
    "arcee": "arcee",
    "bitnet": "bitnet",
    "cohere2": "cohere2",
    "command-r": "cohere",
    "dbrx": "dbrx",
    "deepseek2": "deepseek_v3",
    "dots1": "dots1",
    "ernie4_5": "ernie4_5",
    "ernie4_5-moe": "ernie4_5_moe",
    "exaone-moe": "exaone_moe",
    "exaone4": "exaone4",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "glm4": "glm4",
    "glm4moe": "glm4_moe",
    "gpt-oss": "gpt_oss",
    "gpt2": "gpt2",
    "gptneox": "gpt_neox",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "hunyuan-dense": "hunyuan_v1_dense",
    "hunyuan-moe": "hunyuan_v1_moe",
    "jais2": "jais2",
    "llama": "llama",
    "mimo2": "mimo_v2_flash",
    "minicpm3": "minicpm3",
    "minimax-m2": "minimax_m2",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "phi2": "phi",
    "phi3": "phi3",
    "phimoe": "phimoe",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "starcoder": "gpt_bigcode",
    "starcoder2": "starcoder2",
}


def advice_for(architecture: str) -> str:
    """What to do about a model of a GGUF architecture that is not imported."""
    if architecture in SERVED_AS_FOLDER:
        return USE_FOLDER
    return "models of this architecture are not served yet, in any format"
