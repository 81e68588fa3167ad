from __future__ import annotations

import pytest

from millrace.scheduler.block_manager import BlockManager

H = [bytes([i]) * 16 for i in range(8)]


def test_blocks_come_back_when_their_last_owner_frees_them():
    blocks = BlockManager(4, 8)
    table = blocks.allocate(3)
    blocks.cache(table[0], H[0])
    blocks.share(table[:1])

    blocks.free(table)

    assert blocks.num_used == 1
    assert blocks.ref_count(table[0]) == 1
    blocks.free(table[:1])
    assert blocks.num_available == 4
    assert blocks.num_free == 3


def test_more_than_is_there_is_refused_and_takes_nothing():
    blocks = BlockManager(2, 8)

    with pytest.raises(IndexError, match="3 blocks wanted, 2 available"):
        blocks.allocate(3)

    assert blocks.num_available == 2


def test_a_prefix_is_found_up_to_the_first_gap():
    blocks = BlockManager(4, 8)
    table = blocks.allocate(3)
    blocks.cache(table[0], H[0])
    blocks.cache(table[2], H[2])

    assert blocks.find_prefix(H[:3], 3) == table[:1]


def test_a_prefix_is_found_after_its_owner_is_gone():
    blocks = BlockManager(4, 8)
    table = blocks.allocate(2)
    for block, block_hash in zip(table, H, strict=False):
        blocks.cache(block, block_hash)
    blocks.free(table)

    found = blocks.find_prefix(H, 2)
    blocks.share(found)

    assert found == table
    assert blocks.num_used == 2


def test_free_blocks_are_taken_before_cached_ones():
    blocks = BlockManager(3, 8)
    table = blocks.allocate(1)
    blocks.cache(table[0], H[0])
    blocks.free(table)

    blocks.allocate(2)

    assert blocks.find_prefix(H, 1) == table


def test_the_end_of_the_least_recently_used_prefix_is_evicted_first():
    blocks = BlockManager(4, 8)
    first, second = blocks.allocate(2), blocks.allocate(2)
    for block, block_hash in zip(first + second, H, strict=False):
        blocks.cache(block, block_hash)
    blocks.free(second)
    blocks.free(first)

    blocks.allocate(1)

    assert blocks.find_prefix(H[2:4], 2) == second[:1]
    assert blocks.find_prefix(H[:2], 2) == first


def test_sharing_a_cached_block_protects_it_from_eviction():
    blocks = BlockManager(2, 8)
    table = blocks.allocate(2)
    for block, block_hash in zip(table, H, strict=False):
        blocks.cache(block, block_hash)
    blocks.free(table)
    blocks.share(table[:1])

    assert blocks.allocate(1) == table[1:]
    assert blocks.num_available == 0


def test_equal_content_is_cached_once():
    blocks = BlockManager(4, 8)
    table = blocks.allocate(2)
    blocks.cache(table[0], H[0])
    blocks.cache(table[1], H[0])

    assert blocks.find_prefix(H, 1) == table[:1]
    blocks.free(table)
    assert (blocks.num_free, blocks.num_available) == (3, 4)


def test_room_is_counted_beside_the_blocks_to_be_shared():
    blocks = BlockManager(4, 8)
    table = blocks.allocate(2)
    blocks.cache(table[0], H[0])
    blocks.cache(table[1], H[1])
    blocks.free(table[1:])

    assert blocks.num_available_beside(table) == 2
