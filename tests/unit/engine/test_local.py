"""The loop without services, and its command line."""

from __future__ import annotations

import pytest

from millrace.core.errors import ContextLengthExceeded
from millrace.core.sampling import SamplingSpec
from millrace.core.tokens import FinishReason
from millrace.engine.__main__ import main
from millrace.engine.local import LocalGenerator, LocalRequest


def test_more_prompts_than_rows_and_blocks_wait_their_turn(tiny, engine_for, prompt):
    engine = engine_for("llama", max_num_seqs=3, num_blocks=12)
    prompts = [prompt(5 + 2 * index) for index in range(9)]

    outputs = LocalGenerator(engine).generate([LocalRequest(tokens, 9) for tokens in prompts])

    assert [output.token_ids for output in outputs] == [
        tiny("llama").greedy(tokens, 9) for tokens in prompts
    ]
    assert {output.finish for output in outputs} == {FinishReason.LENGTH}


def test_tokens_come_through_the_callback_in_order(engine_for, prompt):
    seen: dict[int, list[int]] = {0: [], 1: []}

    outputs = LocalGenerator(engine_for("llama")).generate(
        [LocalRequest(prompt(5), 6), LocalRequest(prompt(9), 4)],
        lambda index, token: seen[index].append(token.token_id),
    )

    assert [seen[0], seen[1]] == [output.token_ids for output in outputs]


def test_stop_id_ends_one_request_and_not_the_other(tiny, engine_for, prompt):
    expected = tiny("llama").greedy(prompt(9), 6)
    first = expected.index(expected[3])

    stopped, free = LocalGenerator(engine_for("llama")).generate(
        [LocalRequest(prompt(9), 6, stop_token_ids=(expected[3],)), LocalRequest(prompt(9), 6)]
    )

    assert (stopped.token_ids, stopped.finish) == (expected[: first + 1], FinishReason.STOP)
    assert (free.token_ids, free.finish) == (expected, FinishReason.LENGTH)


def test_seeded_sampling_does_not_depend_on_the_batch(engine_for, prompt):
    spec = SamplingSpec(temperature=1.3, seed=11, top_logprobs=2)
    request = LocalRequest(prompt(9), 12, sampling=spec)
    generator = LocalGenerator(engine_for("llama"), chunk_tokens=4)

    alone = generator.generate([request])[0]
    others = [LocalRequest(prompt(length), 12) for length in (3, 20, 31)]
    together = generator.generate([*others, request])[-1]

    assert together.token_ids == alone.token_ids
    assert len(alone.logprobs) == 12


def test_request_over_the_context_is_refused_with_the_numbers(engine_for, prompt):
    with pytest.raises(ContextLengthExceeded, match="prompt of 200 tokens and max_tokens 100"):
        LocalGenerator(engine_for("llama")).generate([LocalRequest(prompt(200), 100)])


def test_command_line_names_a_missing_checkpoint(tmp_path, capsys):
    status = main(["--model", str(tmp_path), "--prompt", "x"])

    assert status == 1
    assert "config.json" in capsys.readouterr().err


def test_command_line_streams_text(tiny, tmp_path, capsys):
    folder = with_tokenizer(tiny("llama").path, tmp_path)
    arguments = ["--model", str(folder), "--dtype", "float32", "--num-threads", "1"]

    status = main([*arguments, "--prompt", "t5 t6 t7", "--max-tokens", "4"])

    expected = tiny("llama").greedy([5, 6, 7], 4)
    captured = capsys.readouterr()
    assert status == 0
    assert captured.out.split() == [f"t{token_id}" for token_id in expected]
    assert "LlamaForCausalLM, float32" in captured.err


def with_tokenizer(source, folder):
    """A copy of a checkpoint with a tokenizer whose word tN is token N."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    words = {f"t{index}": index for index in range(128)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder
