"""Which requests the response cache may answer, under which key, and the answer as events.

Only deterministic requests are cached, and none with log-probabilities, which the cache does not
hold. The key covers everything that the answer depends on; priority and deadline are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from millrace.core.answer import CachedAnswer
from millrace.core.model import ModelInfo
from millrace.core.tokens import FinishReason

from .events import ChoiceFinished, Delta, Event, Finished, Timings, Usage
from .generation import CacheMode, GenerationRequest

KEY_VERSION = 1


def is_cacheable(request: GenerationRequest) -> bool:
    """True where the same request always has the same answer, and the cache can hold it."""
    return request.sampling.is_deterministic and request.sampling.top_logprobs is None


def uses_cache(request: GenerationRequest) -> bool:
    """True where the request asked for the cache and can have it."""
    return request.cache is not CacheMode.BYPASS and is_cacheable(request)


def cache_key(request: GenerationRequest, info: ModelInfo) -> bytes:
    """32 bytes over tenant, model and the whole canonical request."""
    said = request.canonical()
    if request.sampling.temperature == 0.0:
        # Greedy draws nothing: the seed cannot matter.
        del said["sampling"]["seed"]
    canonical = {
        "version": KEY_VERSION,
        "tenant": request.tenant,
        "model": [info.name, info.revision, info.dtype, info.quantization],
        **said,
    }
    encoded = json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(encoded, digest_size=32, person=b"mr-answer-key").digest()


def answer_of(
    choices: Sequence[ChoiceFinished],
    texts: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    num_prompt_tokens: int,
) -> CachedAnswer | None:
    """What to store; None for an answer that did not come to its own end."""
    if any(c.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH) for c in choices):
        return None
    return CachedAnswer(
        texts=tuple(texts),
        finish_reasons=tuple(choice.finish_reason for choice in choices),
        num_output_tokens=tuple(choice.num_output_tokens for choice in choices),
        num_prompt_tokens=num_prompt_tokens,
        matched_stops=tuple(choice.matched_stop or "" for choice in choices),
        token_ids=tuple(tuple(ids) for ids in token_ids),
    )


def events_of(answer: CachedAnswer, elapsed_ns: int) -> Iterator[Event]:
    """The events after Started that replay an answer."""
    ends = []
    for index, text in enumerate(answer.texts):
        yield Delta(index, text, list(answer.token_ids[index]))
        ends.append(
            ChoiceFinished(
                index,
                answer.finish_reasons[index],
                answer.matched_stops[index] or None,
                answer.num_output_tokens[index],
            )
        )
        yield ends[-1]
    yield Finished(
        choices=tuple(ends),
        usage=Usage(answer.num_prompt_tokens, sum(answer.num_output_tokens), 0),
        timings=Timings(0, elapsed_ns, elapsed_ns),
        is_cached=True,
    )
