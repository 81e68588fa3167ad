"""What every request must have got, whatever broke on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from millrace.testing.model_worker import expected_output
from tests.integration.gateway import Answer, ScriptedGateway


def check_stream(gateway: ScriptedGateway) -> None:
    """Over all frames of one attach: no gap, nothing twice, one terminal event per choice."""
    lengths: Counter[tuple[str, int]] = Counter()
    terminals: Counter[tuple[str, int]] = Counter()
    for frame in gateway.frames:
        for delta in frame.deltas:
            key = delta.request_id, delta.choice
            assert not terminals[key], "a token after the end"
            assert delta.start_index == lengths[key], "a gap, or something twice"
            lengths[key] += len(delta.token_ids)
            terminals[key] += bool(delta.finish)
        for failed in frame.failed:
            for choice in range(gateway.answers[failed.request_id].request.num_choices):
                terminals[failed.request_id, choice] += 1
    for request_id, answer in gateway.answers.items():
        for choice in range(answer.request.num_choices):
            assert terminals[request_id, choice] == 1, "exactly one terminal event"


def check_tokens(answers: Iterable[Answer]) -> None:
    """The same tokens as without any fault."""
    for answer in answers:
        assert answer.failed is None
        for choice in range(answer.request.num_choices):
            output, finish = expected_output(answer.request, choice)
            assert answer.tokens[choice] == output
            assert answer.finishes[choice] is finish
