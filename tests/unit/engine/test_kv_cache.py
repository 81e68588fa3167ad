"""Sizing, clearing and copying of the paged cache."""

from __future__ import annotations

import pytest
import torch

from millrace.core.errors import ConfigError
from millrace.engine.kv_cache import LayerShape, choose_num_blocks
from millrace.engine.torch_kv_cache import KVCache, block_bytes

LAYERS = [LayerShape(2, 4, 4), LayerShape(2, 4, 6), LayerShape(1, 8, 8)]


def make_cache():
    cache = KVCache(LAYERS, 5, 8, torch.float32, torch.device("cpu"))
    for index, tensor in enumerate((*cache.keys, *cache.values)):
        tensor.copy_(torch.arange(5)[:, None, None, None] + 10 * index)
    return cache


def test_every_layer_has_its_own_keys_and_values():
    cache = make_cache()

    assert [tuple(tensor.shape) for tensor in cache.values] == [
        (5, 2, 8, 4),
        (5, 2, 8, 6),
        (5, 1, 8, 8),
    ]
    firsts = [int(tensor[0, 0, 0, 0]) for tensor in (*cache.keys, *cache.values)]
    assert firsts == [0, 10, 20, 30, 40, 50]
    assert cache.num_bytes == 5 * block_bytes(LAYERS, 8, torch.float32)


def test_copying_reads_all_sources_first():
    cache = make_cache()

    cache.copy_blocks([(0, 1), (1, 0), (2, 4)])

    for index, tensor in enumerate((*cache.keys, *cache.values)):
        blocks = (tensor[:, 0, 0, 0] - 10 * index).tolist()
        assert blocks == [1, 0, 2, 3, 2]


def test_clearing_touches_only_the_named_blocks():
    cache = make_cache()

    cache.clear_blocks([1, 3])

    assert not cache.values[1][[1, 3]].any()
    assert (cache.values[1][[0, 2, 4]] != 0).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4 * 13),
        ({"setting": 20}, 20),
        ({"setting": 2000}, 4 * 13),
        ({"memory_bytes": 999}, 9),
    ],
)
def test_least_of_rows_memory_and_setting(changes, expected):
    values = {
        "setting": 0,
        "bytes_per_block": 100,
        "block_size": 8,
        "max_num_seqs": 4,
        "max_model_len": 100,
        "memory_bytes": 10**6,
        **changes,
    }

    assert choose_num_blocks(values.pop("setting"), **values) == expected


def test_no_room_for_one_block_is_an_error_with_the_numbers():
    with pytest.raises(ConfigError, match="a block takes 100 bytes, the cache may take 99"):
        choose_num_blocks(
            0, bytes_per_block=100, block_size=8, max_num_seqs=1, max_model_len=8, memory_bytes=99
        )
