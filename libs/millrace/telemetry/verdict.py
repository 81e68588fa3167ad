"""The verdict on a request as one sentence: its error, what threw it back, where its time went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import names
from .cause import CLIENT_REASONS, Cause
from .durations import format_s
from .span_record import SpanRecord

# A setback is the cause from this share on; below, it is told after what took longest.
SETBACK_SHARE = 0.05
MIN_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Fault:
    """All setbacks of one cause: how often, of which workers, and the seconds that they took.

    `reasons`: why a part of the stack was away.
    """

    cause: Cause
    times: int
    seconds: float
    worker_ids: tuple[str, ...] = ()
    is_out_of_memory: bool = False
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a sentence is made from; `longest` is the cause that took most without any fault."""

    root: SpanRecord
    spans: Sequence[SpanRecord]
    seconds: dict[Cause, float]
    faults: Sequence[Fault]
    longest: Cause
    mean_batch_size: float

    def took(self, seconds: float) -> str:
        """A length and its share of the whole."""
        whole_s = self.root.duration_s
        share = f" ({seconds / whole_s:.0%})" if whole_s > 0 else ""
        return f"{format_s(seconds)} of {format_s(whole_s)}{share}"


def refusal_cause(root: SpanRecord) -> Cause:
    """Whose doing it is that the request was not accepted."""
    return Cause.CLIENT_ERROR if _reason(root) in CLIENT_REASONS else Cause.REFUSED


def tell(evidence: Evidence) -> str:
    """The sentence."""
    root = evidence.root
    if not root.is_accepted:
        ours = "" if refusal_cause(root) is Cause.REFUSED else f" ({Cause.CLIENT_ERROR})"
        return f"refused: {_error(root)}{ours}"
    whole_s = root.duration_s
    large = [fault for fault in evidence.faults if fault.seconds >= SETBACK_SHARE * whole_s]
    small = [fault for fault in evidence.faults if fault not in large]
    parts = [f"failed: {_error(root)}"] if root.status == "ERROR" else []
    if large:
        parts.append("cause: " + "; ".join(_tell_fault(fault, evidence) for fault in large))
    if told := _tell_longest(evidence):
        parts.append(told)
    parts += [_tell_fault(fault, evidence) for fault in small]
    return "; ".join(parts)


def _error(root: SpanRecord) -> str:
    reason = _reason(root)
    message = root.status_message
    return reason if message in ("", reason) else f"{reason}: {message}"


def _reason(root: SpanRecord) -> str:
    return str(root.attributes.get(names.ATTR_ERROR_REASON) or root.status_message or "ERROR")


def _tell_longest(evidence: Evidence) -> str:
    longest, seconds = evidence.longest, evidence.seconds
    if longest is not Cause.NONE:
        return f"most of the time: {_TELL[longest](evidence, evidence.took(seconds[longest]))}"
    if evidence.faults:
        return ""
    parts = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    shown = ", ".join(f"{name} {format_s(value)}" for name, value in parts)
    whole = format_s(evidence.root.duration_s)
    return f"no single cause took {MIN_SHARE:.0%} of {whole}" + (f": {shown}" if shown else "")


def _tell_fault(fault: Fault, evidence: Evidence) -> str:
    if fault.cause is Cause.PART_AWAY:
        why, took = ", ".join(filter(None, fault.reasons)), evidence.took(fault.seconds)
        return f"{fault.cause}: it waited {took}" + (f" because {why}" if why else "")
    often = "once" if fault.times == 1 else f"{fault.times} times"
    workers = ", ".join(fault.worker_ids)
    it, on = workers or "its worker", f" on {workers}" if workers else ""
    what = {
        Cause.WORKER_LOST: f"{it} went away {often}",
        Cause.WORKER_FROZEN: f"{it} stood still {often}",
        Cause.WORKER_LEFT: f"{it} was told to end {often}",
        Cause.STEP_FAILED: f"it lost its row {often}{on}"
        + (", the step being out of memory" if fault.is_out_of_memory else ""),
        Cause.SCHEDULER_LOST: f"the stream to its scheduler broke {often}",
        Cause.PREEMPTION: f"it lost its row {often} for want of KV blocks",
    }[fault.cause]
    return f"{fault.cause}: {what}, and getting back took {evidence.took(fault.seconds)}"


def _tell_queue(evidence: Evidence, took: str) -> str:
    return f"queue: it waited {took} for a row"


def _tell_prefill(evidence: Evidence, took: str) -> str:
    prefills = named(evidence.spans, names.SPAN_PREFILL)
    num_tokens = int(total(prefills, names.ATTR_PREFILL_NUM_TOKENS))
    num_chunks = int(total(prefills, names.ATTR_PREFILL_NUM_CHUNKS))
    how = f"prefill in {num_chunks} chunks" if num_chunks > 1 else "prefill"
    return f"{how}: {num_tokens} prompt tokens took {took}"


def _tell_worker(evidence: Evidence, took: str) -> str:
    decodes = named(evidence.spans, names.SPAN_DECODE)
    num_steps = int(total(decodes, names.ATTR_DECODE_NUM_STEPS))
    busy_s = sum(span.duration_s for span in decodes)
    each = f" of {format_s(busy_s / num_steps)} each" if num_steps else ""
    size = evidence.mean_batch_size
    batch = f", in batches of {size:.1f} rows on average" if size else ""
    return f"worker: {num_steps or 'its'} decode steps{each} took {took}{batch}"


def _tell_tokenizer(evidence: Evidence, took: str) -> str:
    calls = named(evidence.spans, names.SPAN_DETOKENIZE)
    busy_s = total(calls, names.ATTR_DETOKENIZE_BUSY_S)
    return f"tokenizer: Encode and {format_s(busy_s)} of Decode calls took {took}"


def _tell_cache(evidence: Evidence, took: str) -> str:
    return f"cache: the response cache took {took}"


def _tell_intake(evidence: Evidence, took: str) -> str:
    return f"intake: publishing on NATS took {took}"


def _tell_client(evidence: Evidence, took: str) -> str:
    return f"slow client: text lay ready for {took} before the client took it"


def _tell_shared(evidence: Evidence, took: str) -> str:
    other = evidence.root.attributes.get(names.ATTR_SHARED_WITH, "")
    return f"shared run: it waited {took} for the answer to request {other}, which has its key"


def _tell_gateway(evidence: Evidence, took: str) -> str:
    return f"gateway: no other service worked for it during {took}"


_TELL: dict[Cause, Callable[[Evidence, str], str]] = {
    Cause.QUEUE: _tell_queue,
    Cause.PREFILL: _tell_prefill,
    Cause.WORKER: _tell_worker,
    Cause.TOKENIZER: _tell_tokenizer,
    Cause.CACHE: _tell_cache,
    Cause.INTAKE: _tell_intake,
    Cause.CLIENT: _tell_client,
    Cause.SHARED: _tell_shared,
    Cause.GATEWAY: _tell_gateway,
}


def named(spans: Sequence[SpanRecord], name: str) -> list[SpanRecord]:
    """The spans of that name."""
    return [span for span in spans if span.name == name]


def total(spans: Sequence[SpanRecord], attribute: str) -> float:
    """Sum of an attribute; what is no number counts as 0."""
    return sum(_number(span.attributes.get(attribute)) for span in spans)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
