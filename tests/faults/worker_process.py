"""A worker service in a process of its own, to be killed and stopped; without a model."""

from __future__ import annotations

import argparse
import asyncio

from millrace.rpc.signals import run_until_signalled
from tests.faults.faulty_engine import FaultyEngine
from tests.integration.stack import start_worker


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("worker_id")
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--slow-s", type=float, default=0.0)
    arguments = parser.parse_args()
    engine = FaultyEngine(step_s=arguments.step_s, slow_s=arguments.slow_s)
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
