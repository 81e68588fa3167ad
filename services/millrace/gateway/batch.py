"""Many requests in one call: a bounded number at once, each outcome as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from millrace.core.errors import InvalidRequest, MillraceError

from .answers import WholeAnswer, read_whole
from .calls import Call
from .generation import GenerationRequest
from .pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of request `index`: an answer, or the error it ended with."""

    index: int
    request_id: str
    latency_ns: int
    answer: WholeAnswer | None = None
    error: MillraceError | None = None


def check_batch_size(size: int, limit: int) -> None:
    """Raises `InvalidRequest` for an empty batch or one over the limit."""
    if not 1 <= size <= limit:
        raise InvalidRequest(
            f"requests has {size} entries; allowed are 1 to {limit}",
            field="requests",
            metadata={"value": str(size), "max": str(limit)},
        )


async def run_batch(
    pipeline: Pipeline,
    requests: Sequence[GenerationRequest | MillraceError],
    call: Call,
    *,
    max_concurrency: int,
) -> AsyncGenerator[Outcome, None]:
    """Outcomes in the order they come. An entry that could not be read stands as its error.

    Closing the iterator ends every request of the batch.
    """
    seats = asyncio.Semaphore(max_concurrency)
    done: asyncio.Queue[Outcome] = asyncio.Queue()

    async def run(index: int, request: GenerationRequest | MillraceError) -> None:
        async with seats:
            done.put_nowait(await run_one(pipeline, request, call.part(), index))

    with pipeline.batch(call):
        tasks = [asyncio.create_task(run(index, each)) for index, each in enumerate(requests)]
        try:
            for _ in tasks:
                yield await done.get()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def run_one(
    pipeline: Pipeline, request: GenerationRequest | MillraceError, part: Call, index: int = 0
) -> Outcome:
    """Runs one request to its end; an error of the tree is an outcome, not raised."""
    error: MillraceError | None = None
    answer: WholeAnswer | None = None
    try:
        if isinstance(request, MillraceError):
            raise request
        opened = await pipeline.open(request, part)
        answer = await read_whole(opened, request.sampling.num_choices)
    except MillraceError as raised:
        error = raised
    finally:
        part.end(error)
    return Outcome(index, part.request_id, part.elapsed_ns, answer, error)
