"""The judge of quantization, judged itself: against transformers, and by hand."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from scripts.perplexity import TEXT, load_scores, main

from millrace.core.errors import ConfigError
from millrace.engine.config import EngineConfig
from millrace.engine.model_runner import ModelRunner
from millrace.engine.perplexity import PerplexityRun, Scores, compare
from millrace.engine.torch_kv_cache import KVCache
from millrace.testing.tokenizers import VOCAB_SIZE, write_byte_level, write_sentencepiece
from tests.unit.engine.conftest import SIZES

WINDOW = 16
# Three whole windows and one of five tokens.
NUM_TOKENS = 3 * WINDOW + 5


@pytest.mark.parametrize("name", ["llama", "mistral-windowed", "gemma2"])
@pytest.mark.parametrize(("rows", "chunk_tokens"), [(1, 256), (2, 7), (4, 1), (4, 3), (3, 15)])
def test_scores_equal_transformers_however_the_text_is_cut(tiny, prompt, name, rows, chunk_tokens):
    token_ids = prompt(NUM_TOKENS)
    losses, best_ids = [], []
    for start in range(0, NUM_TOKENS, WINDOW):
        window = torch.tensor(token_ids[start : start + WINDOW])
        with torch.no_grad():
            logits = tiny(name).model(window[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
        best_ids.append(logits.argmax(-1))

    scores = score(tiny(name).path, token_ids, rows, chunk_tokens)

    np.testing.assert_allclose(scores.losses, torch.cat(losses).numpy(), rtol=1e-4, atol=1e-4)
    assert scores.best_ids.tolist() == torch.cat(best_ids).tolist()
    assert scores.token_ids.tolist() == token_ids
    assert scores.perplexity == pytest.approx(math.exp(float(torch.cat(losses).mean())), rel=1e-4)


def test_a_last_window_of_one_token_is_left_out(tiny, prompt):
    scores = score(tiny("llama").path, prompt(2 * WINDOW + 1), rows=3, chunk_tokens=8)

    assert len(scores.token_ids) == 2 * WINDOW
    assert len(scores.losses) == len(scores.best_ids) == 2 * (WINDOW - 1)


def test_every_window_begins_with_the_bos_that_is_asked_for(tiny, prompt):
    token_ids, bos = prompt(2 * (WINDOW - 1) + 4), 5
    windows = [[bos, *token_ids[start : start + WINDOW - 1]] for start in (0, WINDOW - 1, 30)]
    losses = []
    for window in map(torch.tensor, windows):
        with torch.no_grad():
            logits = tiny("llama").model(window[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))

    scores = score(tiny("llama").path, token_ids, 2, 7, bos_token_id=bos)

    np.testing.assert_allclose(scores.losses, torch.cat(losses).numpy(), rtol=1e-4, atol=1e-4)
    assert scores.token_ids.tolist() == sum(windows, [])
    assert len(scores.losses) == len(token_ids)
    without = score(tiny("llama").path, token_ids, 2, 7)
    with pytest.raises(ConfigError, match="other tokens or windows"):
        compare(scores, without)


def test_progress_counts_every_predicting_token_once(tiny, prompt):
    seen: list[int] = []

    score(tiny("llama").path, prompt(NUM_TOKENS), 2, 6, seen.append)

    # A window's last token predicts nothing.
    assert seen == [12, 24, 30, 32 + 6 + 4, 32 + 12 + 4, 32 + 15 + 4]


def test_stale_values_in_the_cache_change_nothing(tiny, prompt):
    runner = load(tiny("llama").path, rows=2)
    run = PerplexityRun(runner, window_tokens=WINDOW, rows=2, chunk_tokens=1)
    first = run.score(prompt(NUM_TOKENS))
    assert isinstance(runner.cache, KVCache)
    for pool in (*runner.cache.keys, *runner.cache.values):
        pool.fill_(math.nan)

    again = run.score(prompt(NUM_TOKENS))

    np.testing.assert_array_equal(again.losses, first.losses)


def test_window_and_cache_that_cannot_work_are_refused(tiny, prompt):
    runner = load(tiny("llama").path, rows=2)
    for window_tokens, rows, field in [
        (1, 2, "window_tokens"),
        (WINDOW + 1, 2, "window_tokens"),
        (WINDOW, 3, "rows"),
    ]:
        with pytest.raises(ConfigError) as caught:
            PerplexityRun(runner, window_tokens=window_tokens, rows=rows, chunk_tokens=8)
        assert caught.value.field == field
    run = PerplexityRun(runner, window_tokens=WINDOW, rows=2, chunk_tokens=8)
    with pytest.raises(ConfigError, match="at least two tokens"):
        run.score(prompt(1))


def test_comparison_is_of_pairs():
    reference = scores_of([1.0, 2.0, 3.0, 4.0], [1, 2, 3, 4])
    worse = scores_of([1.1, 2.3, 3.1, 4.3], [1, 2, 9, 4])

    found = compare(worse, reference)

    assert found.perplexity_change_percent == pytest.approx(100 * (math.exp(0.2) - 1))
    assert found.standard_error_percent == pytest.approx(100 * math.exp(0.2) * 0.1 / 2)
    assert found.top1_agreement_percent == 75


def test_comparison_over_other_tokens_or_windows_is_refused():
    reference = scores_of([1.0, 2.0], [1, 2])

    with pytest.raises(ConfigError, match="other tokens or windows"):
        compare(scores_of([1.0, 2.0], [1, 2], token_ids=[5, 6, 8]), reference)
    with pytest.raises(ConfigError, match="other tokens or windows"):
        compare(scores_of([1.0, 2.0], [1, 2], window_tokens=8), reference)


def test_text_is_the_one_that_its_readme_describes():
    packed = TEXT.read_bytes()
    text = gzip.decompress(packed)
    readme = TEXT.with_name("README.md").read_text()

    assert hashlib.sha256(packed).hexdigest() in readme
    assert hashlib.sha256(text).hexdigest() in readme
    assert f"{len(text):,} bytes of ASCII" in readme and text.isascii()
    assert text.startswith(b"Chapter 1\n\nSir Walter Elliot,")
    assert b"gutenberg" not in text.lower()


def test_script_compares_with_a_saved_run(tmp_path, capsys):
    model = write_checkpoint(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("Streams of tokens become text; the fox jumps over the lazy dog. " * 8)
    common = ["--model", str(model), "--text", str(text), "--window-tokens", "32", "--json"]
    common += ["--set", "num_threads=1"]
    saved = tmp_path / "runs" / "wide.npz"

    assert main([*common, "--set", "dtype=float32", "--save", str(saved)]) == 0
    wide = json.loads(capsys.readouterr().out)
    cut = ["--rows", "2", "--chunk-tokens", "1", "--reference", str(saved)]
    assert main([*common, *cut, "--set", "dtype=float32"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert main([*common, *cut, "--set", "dtype=bfloat16"]) == 0
    narrow = json.loads(capsys.readouterr().out)

    assert wide["dtype"] == "float32" and wide["tokens_per_s"] > 0
    assert wide["perplexity"] == pytest.approx(load_scores(saved).perplexity)
    assert wide["num_tokens"] > 32
    assert same["top1_agreement_percent"] == 100
    assert same["perplexity_change_percent"] == pytest.approx(0, abs=1e-3)
    assert narrow["dtype"] == "bfloat16" and narrow["standard_error_percent"] > 1e-3


@pytest.mark.parametrize(("write", "bos"), [(write_sentencepiece, 1), (write_byte_level, None)])
def test_script_puts_bos_before_each_window_if_the_tokenizer_does(tmp_path, capsys, write, bos):
    model = write_checkpoint(tmp_path / "model", write)
    text = tmp_path / "text.txt"
    text.write_text("Streams of tokens become text; the fox jumps over the lazy dog. " * 8)
    common = ["--model", str(model), "--text", str(text), "--window-tokens", "32", "--json"]
    saved = tmp_path / "run.npz"

    assert main([*common, "--set", "num_threads=1", "--save", str(saved)]) == 0

    assert json.loads(capsys.readouterr().out)["bos_token_id"] == bos
    first_of_each = load_scores(saved).token_ids[::32].tolist()
    assert len(first_of_each) > 2
    assert (set(first_of_each) == {bos}) == (bos is not None)


def test_script_says_in_a_line_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--set", "max_num_seqs=4"])
    assert "NAME of dtype, device, backend, route" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--set", "num_threads=many"])
    assert "num_threads is a whole number" in capsys.readouterr().err
    assert main(["--model", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err


def load(path: Path, rows: int) -> ModelRunner:
    return ModelRunner.load(
        EngineConfig(
            model_path=path,
            name="tiny",
            dtype="float32",
            block_size=8,
            max_num_seqs=rows,
            max_model_len=WINDOW,
            num_threads=1,
        )
    )


def score(path, token_ids, rows, chunk_tokens, on_tokens=None, bos_token_id=None) -> Scores:
    run = PerplexityRun(
        load(path, rows),
        window_tokens=WINDOW,
        rows=rows,
        chunk_tokens=chunk_tokens,
        bos_token_id=bos_token_id,
    )
    return run.score(token_ids, on_tokens)


def scores_of(losses, best_ids, *, token_ids=(5, 6, 7), window_tokens=16) -> Scores:
    return Scores(np.array(token_ids), window_tokens, np.array(losses), np.array(best_ids))


def write_checkpoint(folder: Path, write: Callable[[Path], Path] = write_byte_level) -> Path:
    torch.manual_seed(20)
    sizes = {**SIZES, "vocab_size": VOCAB_SIZE}
    config = transformers.AutoConfig.for_model("llama", **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return write(folder)
