"""Any OpenAI-compatible server, streamed, as the target of a load."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from millrace.core.errors import InternalError, Unavailable

from .ask import Ask
from .http_connection import HttpEndpoint, Response
from .outcome import Outcome

ENDPOINTS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
# Events are told apart without decoding their JSON: the client must not be what is measured.
TEXT = re.compile(rb'"(?:text|content|reasoning_content|reasoning)"\s*:\s*"(?!")')
USAGE = re.compile(rb'"usage"\s*:\s*\{')
ERROR = re.compile(rb'^\s*\{\s*"error"\s*:')
DATA = b"data:"


class HttpTarget:
    """`/v1/completions` or `/v1/chat/completions`."""

    protocol = "http"

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        ignore_eos: bool = True,
        endpoint: str = "completions",
        api_key: str = "",
    ) -> None:
        """`url` with or without `/v1` at its end. Raises ConfigError for other than HTTP."""
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._http = HttpEndpoint(url.rstrip("/").removesuffix("/v1"), headers)
        self._model = model
        self._ignore_eos = ignore_eos
        self._is_chat = endpoint == "chat"
        self._path = ENDPOINTS[endpoint]

    async def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    async def choose_model(self) -> None:
        """Takes the first model of the server's list where none was named. Raises MillraceError."""
        if self._model:
            return
        async with self._http.exchange("GET", "/v1/models") as response:
            body = await response.body()
        if response.status != 200:
            raise _refusal(response.status, body)
        try:
            self._model = str(json.loads(body)["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as exc:
            raise Unavailable("the server lists no model; name one with --model") from exc

    async def send(self, ask: Ask, outcome: Outcome) -> None:
        """One request to its end; notes what comes in `outcome`. Raises MillraceError."""
        async with self._http.exchange("POST", self._path, self._body(ask)) as response:
            if response.status != 200:
                raise _refusal(response.status, await response.body())
            outcome.request_id = response.headers.get("x-request-id", "")
            outcome.model = self._model
            await _take(response, outcome)

    def _body(self, ask: Ask) -> bytes:
        body: dict[str, Any] = {
            "max_tokens": ask.num_output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._is_chat:
            body["messages"] = [{"role": "user", "content": ask.prompt}]
        else:
            body["prompt"] = ask.prompt
        if self._model:
            body["model"] = self._model
        if self._ignore_eos:
            body["ignore_eos"] = True
        return json.dumps(body).encode()


async def _take(response: Response, outcome: Outcome) -> None:
    last_usage, is_done = b"", False
    async for event in _events(response):
        if TEXT.search(event):
            outcome.event_times_s.append(time.monotonic())
        if USAGE.search(event):
            last_usage = event
        elif ERROR.search(event):
            raise _refusal(response.status, event)
        is_done = is_done or event == b"[DONE]"
    if not is_done:
        raise InternalError("the stream ended without [DONE]")
    usage = json.loads(last_usage)["usage"] if last_usage else {}
    outcome.num_prompt_tokens = int(usage.get("prompt_tokens") or 0)
    # A server that reports no usage is taken at one token per event.
    num_tokens = usage.get("completion_tokens")
    outcome.num_output_tokens = int(num_tokens or len(outcome.event_times_s))


async def _events(response: Response) -> AsyncIterator[bytes]:
    """The data of each server-sent event; one line each, as these servers write them."""
    rest = b""
    async for piece in response.pieces():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(DATA):
                yield line[len(DATA) :].strip()


def _refusal(status: int, body: bytes) -> Unavailable:
    """The status and the server's own word for why, where it has one."""
    try:
        error = json.loads(body)["error"]
        code, message = str(error.get("code") or ""), str(error.get("message") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        code, message = "", body[:200].decode(errors="replace")
    metadata = {"http_status": str(status), "code": code}
    return Unavailable(f"HTTP {status}: {message}", metadata=metadata)
