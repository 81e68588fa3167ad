"""Generation with the engine alone: no services, no network."""

from __future__ import annotations

import time
from collections.abc import Callable

from millrace.config.environment import park_idle_threads
from millrace.config.home import millrace_home
from millrace.core.errors import ContextLengthExceeded, InvalidRequest
from millrace.core.sampling import draw_seed
from millrace.hub.catalog import DEFAULT_MODEL

from .client import Answer, SamplingOptions
from .stack.model_choice import find_or_pull

DEFAULT_MAX_TOKENS = 256


def generate_locally(
    prompt: str, model: str, dtype: str, options: SamplingOptions, on_text: Callable[[str], None]
) -> Answer:
    """Continues one prompt. Raises `InvalidRequest`, and what hub and engine raise."""
    if options.stop:
        raise InvalidRequest("--stop needs the stack; it is not there with --local", field="stop")
    params = options.params()
    entry = find_or_pull(model or DEFAULT_MODEL, millrace_home())
    park_idle_threads()
    # Not before the command line is known to be right: torch takes a second to import.
    from millrace.engine.config import EngineConfig
    from millrace.engine.engine import create_engine
    from millrace.engine.local import LocalGenerator, LocalRequest
    from millrace.engine.text import LocalTextGenerator

    config = EngineConfig(
        model_path=entry.path,
        name=entry.name,
        revision=entry.revision,
        dtype=dtype,
        cache_dir=millrace_home().cache,
    )
    engine = create_engine(config)
    texts = LocalTextGenerator(LocalGenerator(engine), entry.path)
    num_prompt_tokens = len(texts.encode(prompt, chat=False))
    room = engine.info.max_model_len - num_prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt_tokens} tokens; "
            f"{entry.name} takes {engine.info.max_model_len} with the output"
        )
    answer = Answer(model=entry.name)
    params = params.resolved(engine.info.default_sampling)
    answer.seed = draw_seed() if params.seed is None else params.seed
    max_tokens = params.max_tokens or min(DEFAULT_MAX_TOKENS, room)
    stop_ids = () if params.ignore_eos else None
    request = LocalRequest((), max_tokens, params.spec(answer.seed), stop_ids)
    began = time.monotonic()

    def take(_: int, text: str) -> None:
        answer.ttft_s = answer.ttft_s or time.monotonic() - began
        on_text(text)

    (output,) = texts.generate([prompt], request, on_text=take)
    answer.total_s, answer.text = time.monotonic() - began, output.text
    answer.num_prompt_tokens = output.num_prompt_tokens
    answer.num_output_tokens = output.num_output_tokens
    answer.finish_reason = output.finish.name.lower()
    return answer
