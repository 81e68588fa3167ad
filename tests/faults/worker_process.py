"""A worker service in a process of its own, to be killed and stopped; without a model."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from millrace.rpc.signals import run_until_signalled
from tests.faults.faulty_engine import FaultyEngine
from tests.faults.sample_counts import SampleCounts
from tests.integration.stack import start_worker


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("worker_id")
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--slow-s", type=float, default=0.0)
    parser.add_argument("--samples-file", type=Path)
    parser.add_argument("--num-seeds", type=int, default=1)
    arguments = parser.parse_args()
    file = arguments.samples_file
    engine = FaultyEngine(
        step_s=arguments.step_s,
        slow_s=arguments.slow_s,
        sampled=SampleCounts(file, arguments.num_seeds) if file else None,
    )
    asyncio.run(_serve(arguments.worker_id, engine))


async def _serve(worker_id: str, engine: FaultyEngine) -> None:
    node = await start_worker(worker_id, engine)
    registration = node.registration
    print(registration.advertise_address, registration.boot_id, flush=True)
    await run_until_signalled()
    node.servicer.end()
    await node.stop()


if __name__ == "__main__":
    main()
