"""One-at-a-time `generate` of transformers, as a process that a benchmark drives.

Reads one JSON object per line from standard input, {"prompts": [[token id, ...], ...],
"num_tokens": 64}, runs the prompts one after another, each to exactly that many greedy tokens, and
answers with {"num_tokens": all of them, "seconds": wall time}. Says {"ready": true} first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    model = load_model(arguments.model, arguments.dtype, arguments.threads)
    generate(model, [1, 2, 3, 4], 4)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        started_s = time.perf_counter()
        num_tokens = sum(generate(model, ids, order["num_tokens"]) for ids in order["prompts"])
        seconds = time.perf_counter() - started_s
        print(json.dumps({"num_tokens": num_tokens, "seconds": seconds}), flush=True)


def load_model(path: str, dtype: str, num_threads: int) -> Any:
    """The model, which never ends on its own."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(num_threads)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def generate(model: Any, ids: list[int], num_tokens: int) -> int:
    """Number of new tokens."""
    import torch

    prompt = torch.tensor([ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=num_tokens,
        do_sample=False,
    )
    num_new = output.shape[1] - prompt.shape[1]
    if num_new != num_tokens:
        raise RuntimeError(f"generate gave {num_new} tokens; {num_tokens} were asked for")
    return int(num_new)


if __name__ == "__main__":
    main()
