"""What a loaded model is, as workers register it and gateways list it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from .sampling import SamplingDefaults


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts of a loaded model; counts are taken from the loaded tensors."""

    name: str
    revision: str
    dtype: str
    max_model_len: int
    vocab_size: int
    aliases: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    num_parameters: int = 0
    weight_bytes: int = 0
    quantization: str = "none"
    architecture: str = ""
    route: str = "native"
    config_json: str = field(default="{}", repr=False)
    default_sampling: SamplingDefaults = SamplingDefaults()

    def answers_to(self, name: str) -> bool:
        """True where a request for `name` is a request for this model."""
        return name == self.name or name in self.aliases


def model_slug(name: str) -> str:
    """The model's token in NATS subjects: up to 20 of [a-z0-9-], then 8 hex of BLAKE2b(name)."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:20].strip("-")
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{readable}-{digest}" if readable else digest
