"""What `up` shows when the stack is ready: endpoints and one answer streamed through all of it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping

from millrace.cli.console import Console
from millrace.cli.exit_status import EXIT_CONTINUED
from millrace.cli.http_probe import get_json
from millrace.cli.readiness import describe_readiness
from millrace.cli.up_config import UpConfig
from millrace.core.own_command import own_command

from .parent_death import death_with_parent
from .stack_view import StackView
from .supervisor import PartFailed

FIRST_PROMPT = "Say hello in five words."
# For a model that only continues texts.
FIRST_BEGINNING = "The river mill"
FIRST_ANSWER_TIMEOUT_S = 120
_READY_POLL_S = 0.2


class FirstAnswer:
    """Waits until the gateway has a model, then shows where everything is and one answer."""

    def __init__(
        self, console: Console, view: StackView, endpoints: Mapping[str, str], config: UpConfig
    ) -> None:
        self._console = console
        self._view = view
        self._endpoints = endpoints
        self._config = config

    async def show(self, began: float) -> None:
        """`began` is when the start began, on the monotonic clock. Raises `PartFailed`."""
        await self._wait_for_gateway()
        self._view.hold()
        try:
            self._show_endpoints(time.monotonic() - began)
            can_chat = await self._ask() if self._config.first_answer else True
            self._show_next_steps(can_chat=can_chat)
            self._console.line(self._console.paint("Ctrl-C stops.", "bold"))
        finally:
            self._view.release()

    async def _wait_for_gateway(self) -> None:
        url = self._endpoints["http"] + "/ready"
        deadline = time.monotonic() + self._config.ready_timeout_s
        while True:
            status, document = await asyncio.to_thread(get_json, url)
            if status == 200:
                return
            if time.monotonic() > deadline:
                said = describe_readiness(status, document)
                raise PartFailed(f"{said}, after {self._config.ready_timeout_s:g} s; see {url}")
            await asyncio.sleep(_READY_POLL_S)

    def _show_endpoints(self, took_s: float) -> None:
        line, paint = self._console.line, self._console.paint
        http = self._endpoints["http"]
        line()
        line(paint(f"Millrace is ready after {took_s:.1f} s.", "green"))
        line(f"  HTTP  {http}  (OpenAI routes under /v1, also /health /ready /metrics)")
        line(f"  gRPC  {self._endpoints['grpc']}  (millrace.v1.InferenceService, reflection)")
        line()

    def _show_next_steps(self, *, can_chat: bool) -> None:
        text = own_command("chat" if can_chat else f'generate "{FIRST_BEGINNING}"')
        self._console.line(f"Next: {text}")
        self._console.line(f"      {own_command('trace --last')}, {own_command('status')}")
        self._console.line("      examples/ of the source tree: curl, Python, Node, gRPC, a page")

    async def _ask(self) -> bool:
        """False if the model cannot chat, and has continued a text instead.

        A process of its own, so that the supervisor stays small and never forks with gRPC.
        """
        self._console.line(self._console.paint(f"> {FIRST_PROMPT}", "cyan"))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "millrace.cli",
            "chat",
            FIRST_PROMPT,
            "--stats",
            "--max-tokens=48",
            "--temperature=0",
            f"--else-continue={FIRST_BEGINNING}",
            f"--address={self._endpoints['grpc']}",
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=death_with_parent(),
        )
        try:
            await asyncio.wait_for(process.wait(), FIRST_ANSWER_TIMEOUT_S)
        except TimeoutError:
            self._console.line(f"no answer within {FIRST_ANSWER_TIMEOUT_S} s")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        can_chat = process.returncode != EXIT_CONTINUED
        if process.returncode and can_chat:
            doctor = own_command("doctor")
            self._console.line(f"the first answer failed; `{doctor}` looks for the reason")
        self._console.line()
        return can_chat
