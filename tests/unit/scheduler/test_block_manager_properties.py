"""Whatever is allocated, shared, cached and freed in whatever order: no block is lost."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from millrace.scheduler.block_manager import BlockManager

NUM_BLOCKS = 12
NUM_CONTENTS = 9
NUM_MOVES = 200
CONTENTS = [bytes([number]) * 16 for number in range(NUM_CONTENTS)]


class Owners:
    """Block tables beside a manager, and what each cached block is known to hold."""

    def __init__(self, random: Random) -> None:
        self.blocks = BlockManager(NUM_BLOCKS, 8)
        self.tables: list[list[int]] = []
        self.contents: dict[int, bytes] = {}
        self._random = random

    def allocate(self) -> None:
        wanted = self._random.randint(1, 4)
        if wanted > self.blocks.num_available:
            return
        free_first = min(wanted, self.blocks.num_free)
        before = set(self.contents)
        table = self.blocks.allocate(wanted)
        assert len(set(table)) == wanted
        assert all(block not in held for held in self.tables for block in table)
        evicted = before & set(table)
        assert len(evicted) == wanted - free_first, "free blocks go first"
        for block in evicted:
            del self.contents[block]
        self.tables.append(table)

    def share(self) -> None:
        """As an admission does: the cached beginning of some prompt."""
        start = self._random.randrange(NUM_CONTENTS)
        prompt = CONTENTS[start:]
        found = self.blocks.find_prefix(prompt, self._random.randint(0, 4))
        assert [self.contents[block] for block in found] == prompt[: len(found)]
        beside = self.blocks.num_available_beside(found)
        if found:
            self.blocks.share(found)
            self.tables.append(list(found))
        assert self.blocks.num_available == beside

    def cache(self) -> None:
        if not self.tables:
            return
        block = self._random.choice(self._random.choice(self.tables))
        content = self._random.choice(CONTENTS)
        self.blocks.cache(block, content)
        if block not in self.contents and content not in self.contents.values():
            self.contents[block] = content

    def free(self) -> None:
        if self.tables:
            index = self._random.randrange(len(self.tables))
            table = self.tables.pop(index)
            sole = self.blocks.num_sole(table)
            available = self.blocks.num_available
            self.blocks.free(table)
            assert self.blocks.num_available == available + sole

    def check(self) -> None:
        """Counted as often as owned; cached as written; nothing lost."""
        owners = Counter(block for table in self.tables for block in table)
        for block in range(NUM_BLOCKS):
            assert self.blocks.ref_count(block) == owners[block]
        assert self.blocks.num_used == len(owners)
        assert self.blocks.num_used + self.blocks.num_available == NUM_BLOCKS
        unowned_cached = sum(block not in owners for block in self.contents)
        assert self.blocks.num_free == NUM_BLOCKS - len(owners) - unowned_cached
        for block, content in self.contents.items():
            assert self.blocks.find_prefix([content], 1) == [block]


@given(seed=st.integers(min_value=0, max_value=2**32 - 1))
def test_no_block_is_lost_or_owned_by_more_than_are_counted(seed):
    random = Random(seed)
    owners = Owners(random)
    moves = (
        owners.allocate,
        owners.allocate,
        owners.share,
        owners.cache,
        owners.cache,
        owners.free,
    )
    for _ in range(NUM_MOVES):
        random.choice(moves)()
        owners.check()
    while owners.tables:
        owners.free()
    owners.check()
    assert owners.blocks.num_available == NUM_BLOCKS
