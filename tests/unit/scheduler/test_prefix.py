from __future__ import annotations

import pytest

from millrace.scheduler.prefix import extend_block_hashes, prefix_seed, root_hash

SEED = prefix_seed("0123456789abcdef", "bfloat16", 1)


def block_hashes(tokens, block_size=32, tenant="", seed=SEED):
    hashes: list[bytes] = []
    root = root_hash(seed, tenant)
    extend_block_hashes(hashes, root, tokens, block_size, len(tokens) // block_size)
    return hashes


def test_published_vectors():
    """For anyone who computes these hashes elsewhere; they change with the layout version only."""
    assert SEED.hex() == (
        "10000000303132333435363738396162636465660800000062666c6f617431360100000031"
    )
    assert root_hash(SEED, "").hex() == "2019a9089d2fac2398c608a32b343b9e"
    assert root_hash(SEED, "acme").hex() == "44ba95ed6ed5895b696c168a30366068"
    assert [h.hex() for h in block_hashes(list(range(100)))] == [
        "5f5fddf21f6b10ef2e890e7805cb0624",
        "2b0daf2b6304fcdbf4b206556d8df79e",
        "7c485eb8b9e18ddb0ab008d80a6c9369",
    ]
    assert [h.hex() for h in block_hashes([1, 2, 3, 4, 65535, 151935, 0, 7], 4, "acme")] == [
        "8b06c811d646a9796b4b669cc2a2b1ed",
        "d8c20ba412d66133946230a0e041ad10",
    ]


def test_a_partly_filled_block_has_no_hash():
    assert len(block_hashes(list(range(63)))) == 1


def test_a_block_hash_covers_everything_before_it():
    one, other = block_hashes([1] * 32 + [2] * 32), block_hashes([3] * 32 + [2] * 32)

    assert one[1] != other[1]


def test_hashes_grow_block_by_block_to_the_same_values():
    tokens = list(range(128))
    hashes: list[bytes] = []
    for num_blocks in (1, 1, 3, 4):
        extend_block_hashes(hashes, root_hash(SEED, ""), tokens, 32, num_blocks)

    assert hashes == block_hashes(tokens)


@pytest.mark.parametrize(
    "seed", [prefix_seed("r", "float32"), prefix_seed("r", "bfloat16", 2), prefix_seed("rb", "")]
)
def test_other_weights_dtype_or_layout_give_other_hashes(seed):
    assert block_hashes([1] * 32, seed=seed) != block_hashes(
        [1] * 32, seed=prefix_seed("r", "bfloat16")
    )


def test_tenants_share_no_block():
    assert block_hashes([1] * 32, tenant="a") != block_hashes([1] * 32, tenant="b")
