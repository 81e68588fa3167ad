"""Who waits, and who goes first.

Three priority classes, the higher first, except that every `ageing_share`-th admission goes to the
lower class whose head has waited longest. Inside a class the tenant with the least weighted
service goes first, inside a tenant the earliest arrival; a sequence whose prefix is cached may
overtake a few others, each of them a bounded number of times.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from itertools import islice

from millrace.core.request import Priority

from .policy import SchedulerPolicy
from .sequence import Sequence

Credit = Callable[[Sequence], int]


class WaitingQueue:
    """Waiting sequences by class, tenant and arrival; unbounded, its caller sees to that."""

    def __init__(self, policy: SchedulerPolicy) -> None:
        self._policy = policy
        self._classes: dict[Priority, dict[str, list[Sequence]]] = {p: {} for p in Priority}
        self._num_taken = 0
        self.num_tokens = 0
        self.num_sequences = 0

    def __len__(self) -> int:
        return self.num_sequences

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence at its place by arrival."""
        queued = sequence.request.queued
        queue = self._classes[queued.priority].setdefault(queued.tenant, [])
        insort(queue, sequence, key=_rank)
        self.num_tokens += sequence.num_tokens
        self.num_sequences += 1

    def discard(self, sequence: Sequence) -> None:
        """Takes out a sequence that waits no longer."""
        queued = sequence.request.queued
        queues = self._classes[queued.priority]
        queue = queues[queued.tenant]
        queue.remove(sequence)
        if not queue:
            del queues[queued.tenant]
        self.num_tokens -= sequence.num_tokens
        self.num_sequences -= 1

    def take(self, sequence: Sequence, now_ns: int) -> None:
        """Takes out a sequence that is admitted; the one before it in line has been overtaken."""
        queued = sequence.request.queued
        head = self._classes[queued.priority][queued.tenant][0]
        if head is not sequence:
            head.note_bypass(now_ns)
        self.discard(sequence)
        self._num_taken += 1

    def may_be_bypassed(self, sequence: Sequence, now_ns: int) -> bool:
        """True while others may still overtake it."""
        since_ns = sequence.bypassed_since_ns or now_ns
        return (
            sequence.num_bypasses < self._policy.max_bypasses
            and (now_ns - since_ns) / 1e6 < self._policy.max_bypass_ms
        )

    def in_order(self, now_ns: int, credit: Credit) -> Iterator[Sequence]:
        """Candidates for admission, first to last, each once; the caller may take the one it got.

        `credit` is the number of tokens that the cache would save a sequence now.
        """
        seen: set[int] = set()
        aged_turn = -1
        while True:
            is_aged_turn = self._is_ageing_turn() and aged_turn != self._num_taken
            aged_turn = self._num_taken if is_aged_turn else aged_turn
            queue = self._next_queue(seen, is_aged_turn)
            if queue is None:
                return
            window = list(islice(_unseen(queue, seen), self._policy.bypass_window))
            sequence = self._pick(window, now_ns, credit)
            seen.add(id(sequence))
            yield sequence

    def _is_ageing_turn(self) -> bool:
        return (self._num_taken + 1) % self._policy.ageing_share == 0

    def _next_queue(self, seen: set[int], is_aged_turn: bool) -> list[Sequence] | None:
        heads = {
            priority: [
                (queue[0].request.account.served, head.rank, queue)
                for queue in queues.values()
                if (head := next(_unseen(queue, seen), None)) is not None
            ]
            for priority, queues in self._classes.items()
        }
        waiting = [priority for priority, found in heads.items() if found]
        if not waiting:
            return None
        priority = waiting[0]
        if len(waiting) > 1 and is_aged_turn:
            priority = min(waiting[1:], key=lambda p: min(rank[1:] for _, rank, _ in heads[p]))
        return min(heads[priority])[2]

    def _pick(self, window: list[Sequence], now_ns: int, credit: Credit) -> Sequence:
        head = window[0]
        if len(window) == 1 or not self.may_be_bypassed(head, now_ns):
            return head
        best = max(window, key=credit)
        is_worth_it = credit(best) > credit(head) and 2 * credit(best) >= best.num_tokens
        return best if is_worth_it else head


def _unseen(queue: list[Sequence], seen: set[int]) -> Iterator[Sequence]:
    return (sequence for sequence in queue if id(sequence) not in seen)


def _rank(sequence: Sequence) -> tuple[int, int, int, int]:
    return sequence.rank
