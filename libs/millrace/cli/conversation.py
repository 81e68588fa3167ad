"""A conversation with the model: instructions, turns so far, and how answers are drawn."""

from __future__ import annotations

from typing import Any

from millrace.core.request_fields.field import Place
from millrace.core.request_fields.our_sampling import SAMPLING

from .client import Answer, InferenceClient, SamplingOptions
from .console import Console


class Conversation:
    """The turns so far, sent again with each message. `system` is empty for no instructions."""

    def __init__(
        self, client: InferenceClient, model: str, sampling: SamplingOptions, system: str = ""
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.system = system
        self.turns: list[tuple[str, str]] = []
        self._client = client

    @property
    def address(self) -> str:
        """Of the gateway."""
        return self._client.address

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Roles and texts, instructions first."""
        return [*([("system", self.system)] if self.system else []), *self.turns]

    def reset(self) -> None:
        """Forgets everything but the instructions."""
        self.turns.clear()

    async def say(self, message: str, console: Console) -> Answer:
        """Streams the answer to the console. A turn that fails or is stopped is not kept."""
        asked = [*self.messages, ("user", message)]
        answer = await self._client.chat(asked, self.model, self.sampling, console.write)
        self.turns += [("user", message), ("assistant", answer.text)]
        return answer

    def as_request(self) -> dict[str, Any]:
        """As a body of POST /v1/chat/completions."""
        given = self.sampling.given()
        sampling = {
            known.names[Place.CHAT][0]: known.meant(given[known.name])
            for known in SAMPLING
            if known.name in given
        }
        messages = [{"role": role, "content": content} for role, content in self.messages]
        return {**({"model": self.model} if self.model else {}), "messages": messages, **sampling}
