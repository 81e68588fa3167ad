"""The engine on the `cpu` backend: its routes, its blocks, and the same tokens in any batch."""

from __future__ import annotations

import functools
import json
import operator
import subprocess
import sys
from dataclasses import replace

import pytest

from millrace.core.sampling import SamplingSpec
from millrace.core.step import Fork
from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.kernels.cpu.library import BF16, F32, INT8
from millrace.engine.kernels.cpu.packed_index import HEADER_BYTES, header_of
from millrace.engine.local import LocalGenerator, LocalRequest
from tests.unit.engine.conftest import NEEDS_KERNELS

pytestmark = NEEDS_KERNELS

BOTH_ROUTES = [("llama", "native"), ("mistral-windowed", "native"), ("gemma2", "generic")]
NATIVE = ["llama", "llama-biased", "llama-llama3", "mistral-windowed", "qwen2", "qwen3"]
# Mixtral, GPT-OSS and GPT-2 keep weights outside of nn.Linear: plain torch multiplies them, and its
# results depend on the number of rows.
GENERIC = ["gpt_neox", "gemma2", "phi3", "cohere", "granite"]
LENGTHS = (1, 31, 32, 33, 70, 100)
LOGPROBS = SamplingSpec(temperature=0.0, top_logprobs=5)
WITHOUT_TORCH = """
import json, sys
from pathlib import Path
from millrace.core.sampling import SamplingSpec
from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.local import LocalGenerator, LocalRequest

folder, cache = map(Path, sys.argv[1:])
config = EngineConfig(folder, "x", dtype="float32", device="cpu", backend="cpu", cache_dir=cache)
spec = SamplingSpec(temperature=0.0, top_logprobs=5)
request = LocalRequest(json.load(sys.stdin), 6, spec)
answer = LocalGenerator(create_engine(config)).generate([request])[0]
print(json.dumps({"tokens": answer.token_ids, "has_torch": "torch" in sys.modules}))
"""


@pytest.mark.parametrize("name", NATIVE + GENERIC)
@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"quantization": "int8", "dtype": "auto"},
        {"quantization": "int8", "dtype": "auto", "kv_dtype": "int8"},
        {"quantization": "int4", "dtype": "auto"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_answer_is_the_same_alone_in_a_crowd_and_in_chunks(engine_for, prompt, name, settings):
    # Where torch's threads share out an activation, the ends of their shares round differently.
    num_threads = 2 if name in NATIVE else 1
    engine = engine_for(name, "cpu", num_threads=num_threads, **settings)
    requests = [LocalRequest(prompt(length), 12, LOGPROBS) for length in LENGTHS]

    alone = [LocalGenerator(engine).generate([request])[0] for request in requests]
    crowd = LocalGenerator(engine).generate(requests)
    chunked = LocalGenerator(engine, chunk_tokens=13).generate(requests[::-1])[::-1]

    # Not only tokens: the logarithms of their probabilities are equal to the last bit.
    assert crowd == alone
    assert chunked == alone


@pytest.mark.parametrize(("name", "route"), BOTH_ROUTES)
def test_cached_prefix_gives_the_same_tokens(tiny, engine_for, drive, prompt, name, route):
    driver = drive(engine_for(name, "cpu", route=route))
    shared = prompt(70)
    driver.start(0, shared)
    tokens = shared[:64] + prompt(9)

    blocks = driver.blocks[0][:2] + driver.take(64)
    driver.start(1, tokens, num_cached_tokens=64, blocks=blocks)
    for _ in range(8):
        driver.execute()

    assert driver.outputs[1] == tiny(name).greedy(tokens, 9)
    assert driver.outputs[0] == tiny(name).greedy(shared, 9)


@pytest.mark.parametrize("name", ["qwen2", "phi3"])
def test_preempted_row_continues_with_the_same_tokens(tiny, engine_for, drive, prompt, name):
    driver = drive(engine_for(name, "cpu"))
    tokens = prompt(35)
    driver.start(0, tokens)
    for _ in range(6):
        driver.execute()

    so_far = list(driver.outputs[0])
    again = driver.admission(4, tokens + so_far, num_prompt_tokens=35)
    driver.execute(release_rows=[0], admissions=[again], chunks=[(4, 37)])
    driver.execute(chunks=[(4, 5)])
    for _ in range(8):
        driver.execute()

    assert so_far + driver.outputs[4] == tiny(name).greedy(tokens, 16)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_fork_goes_its_own_way_over_copied_blocks(engine_for, drive, prompt, kv_dtype):
    driver = drive(engine_for("llama", "cpu", dtype="bfloat16", kv_dtype=kv_dtype))
    spec = SamplingSpec(temperature=1.5, seed=7)
    tokens = prompt(40)
    driver.start(0, tokens, sampling=spec)
    driver.start(1, tokens, sampling=spec)
    for _ in range(3):
        driver.execute()
    so_far = list(driver.outputs[0])

    own = driver.take(64)
    fork = Fork(0, 2, 202, choice=1, blocks=[driver.blocks[0][0], *own])
    driver.outputs[2] = []
    driver.execute(copy_blocks=[(driver.blocks[0][1], own[0])], forks=[fork])
    for _ in range(8):
        driver.execute()
    again = driver.admission(3, tokens + so_far, num_prompt_tokens=40, sampling=spec, choice=1)
    driver.execute(admissions=[again], chunks=[(3, len(tokens) + 4)])
    for _ in range(8):
        driver.execute()

    assert driver.outputs[0] == driver.outputs[1]
    assert driver.outputs[2][:9] == driver.outputs[3]
    assert driver.outputs[2][:9] != driver.outputs[0][4:13]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "route"), BOTH_ROUTES)
def test_kernels_draw_the_tokens_that_the_sampler_draws_alone(
    engine_for, prompt, monkeypatch, name, route, dtype
):
    engine = engine_for(name, "cpu", route=route, dtype=dtype)
    specs = [
        SamplingSpec(seed=1),
        SamplingSpec(seed=2, temperature=1.6, top_logprobs=3),
        SamplingSpec(seed=3, top_p=0.8),
        SamplingSpec(temperature=0.0),
        SamplingSpec(seed=4, top_k=9, presence_penalty=0.4),
        SamplingSpec(seed=5, top_k=9, min_p=0.01),
    ]
    requests = [LocalRequest(prompt(9 + i), 25, spec) for i, spec in enumerate(specs)]
    drawn = []
    drawer = engine._sampler._drawer

    class Counting:
        def draw(self, logits, asked):
            tokens = drawer.draw(logits, asked)
            drawn.extend(tokens)
            return tokens

    monkeypatch.setattr(engine._sampler, "_drawer", Counting())
    with_kernels = LocalGenerator(engine).generate(requests)
    monkeypatch.setattr(engine._sampler, "_drawer", None)
    without = LocalGenerator(engine).generate(requests)

    assert with_kernels == without
    assert len(drawn) == 4 * 25
    assert sum(token is None for token in drawn) <= 5


@pytest.mark.parametrize(("name", "route"), BOTH_ROUTES)
def test_freed_blocks_full_of_nan_do_not_leak_into_the_next_row(
    tiny, engine_for, drive, prompt, name, route
):
    driver = drive(engine_for(name, "cpu", route=route))
    for pool in driver.engine._runner.cache._pools.values():
        pool.fill(0xFFFF_FFFF_FFFF_FFFF)
    tokens = prompt(43)

    driver.start(0, tokens)
    for _ in range(9):
        driver.execute()

    assert driver.outputs[0] == tiny(name).greedy(tokens, 10)


def test_progress_rises_twice_with_every_layer(engine_for, drive, prompt):
    driver = drive(engine_for("llama", "cpu"))
    before = driver.engine.progress

    driver.start(0, prompt(9))

    assert driver.engine.progress == before + 6


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_int8_answers_stay_close_to_float32(engine_for, prompt, name, kv_dtype):
    requests = [LocalRequest(prompt(length), 1, LOGPROBS) for length in range(3, 90, 3)]
    exact = LocalGenerator(engine_for(name, "cpu")).generate(requests)
    engine = engine_for(name, "cpu", quantization="int8", dtype="auto", kv_dtype=kv_dtype)

    quantized = LocalGenerator(engine).generate(requests)

    pairs = list(zip(exact, quantized, strict=True))
    # Of a random model many tokens are about as likely as the first.
    assert all(a.token_ids[0] in dict(b.logprobs[0].top) for a, b in pairs)
    gaps = [abs(a.logprobs[0].chosen - b.logprobs[0].chosen) for a, b in pairs]
    assert sum(gaps) / len(gaps) < 0.2
    assert engine.info.quantization == ("int8+kv-int8" if kv_dtype == "int8" else "int8")
    assert engine.info.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"dtype": "float32"}, F32),
        ({"dtype": "bfloat16"}, BF16),
        ({"dtype": "bfloat16", "kv_dtype": "int8"}, INT8),
        ({"dtype": "float32", "kv_dtype": "int8"}, INT8),
        ({"dtype": "float32", "quantization": "int8"}, F32),
    ],
)
def test_keys_and_values_are_stored_as_asked_for(engine_for, prompt, settings, kind):
    engine = engine_for("llama", "cpu", **settings)
    other = engine_for("llama", "cpu")
    requests = [LocalRequest(prompt(length), 4) for length in (5, 40, 90)]

    answers = LocalGenerator(engine).generate(requests)

    assert {struct.kind for struct in engine._runner.cache.structs} == {kind}
    expected = LocalGenerator(other).generate(requests)
    same = sum(a.token_ids[:1] == b.token_ids[:1] for a, b in zip(answers, expected, strict=True))
    assert same >= 2


# What the index of the packed file may say, with a checksum that fits, and the model does not.
OTHERS = {
    "a head of fewer columns": (("matrices", "head", 1), 127),
    "a head of more columns": (("matrices", "head", 1), 160),
    "another kind": (("matrices", "0.qkv", 0), 2),
    "norms of another length": (("arrays", "1.input_norm", 2), [32]),
    "norms of another type": (("arrays", "final_norm", 1), "<i2"),
    "an embedding of fewer rows": (("arrays", "embedding", 2), [100, 64]),
    "no layer": (("arrays", "2.down.panels"), None),
    "no matrix": (("matrices", "2.down"), None),
    "no count": (("extra", "num_parameters"), None),
    "no word of a tied head": (("extra", "is_tied"), None),
    "a narrower middle": (("matrices", "1.down", 2), 32),
    "a wider middle": (("matrices", "0.gate_up", 1), 4096),
}


@pytest.mark.parametrize("name", OTHERS)
def test_packed_weights_that_do_not_fit_the_model_are_packed_anew(
    tiny, kernel_folder, tmp_path, prompt, name
):
    (tmp_path / "kernels").symlink_to(kernel_folder)
    config = EngineConfig(tiny("llama").path, "x", device="cpu", backend="cpu", cache_dir=tmp_path)
    said: list[str] = []

    def answer() -> list[int]:
        engine = create_engine(replace(config, dtype="float32", num_threads=1), said.append)
        return LocalGenerator(engine).generate([LocalRequest(prompt(40), 6)])[0].token_ids

    expected = answer()
    file = next((tmp_path / "weights").glob("*.bin"))
    content = file.read_bytes()
    (*place, last), value = OTHERS[name]
    index = json.loads(content[:HEADER_BYTES].partition(b"\n")[2])
    part = functools.reduce(operator.getitem, place, index)
    if value is None:
        del part[last]
    else:
        part[last] = value
    file.unlink()
    file.write_bytes(header_of(json.dumps(index)) + content[HEADER_BYTES:])
    said.clear()

    assert answer() == expected
    assert any(text.startswith("packing the weights as float32") for text in said)
    said.clear()
    assert answer() == expected
    assert not any(text.startswith("packing") for text in said)


def test_native_model_is_served_without_torch(tiny, engine_for, engine_cache, prompt):
    requests = [LocalRequest(prompt(40), 6, LOGPROBS)]
    expected = LocalGenerator(engine_for("llama", "cpu")).generate(requests)[0]

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, tiny("llama").path, engine_cache],
        input=json.dumps(requests[0].prompt_token_ids),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"tokens": expected.token_ids, "has_torch": False}
