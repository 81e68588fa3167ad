"""Small tokenizers of every kind, written as model folders; trained on a few lines of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = (
    "The quick brown fox jumps over the lazy dog. It didn't look back, and it's gone.",
    "Streams of tokens become text; text becomes streams of tokens again and again.",
    "def main() -> None:\n    print('hello, world')  # 1234567890\n",
    "Größe, café, naïve, Москва, 東京, 你好世界, 😀 👩‍💻 🇩🇪, ﷽, a\u0301.",
    "<html><body>Special strings are text here: <b>bold</b> & so on.</body></html>",
)
VOCAB_SIZE = 600

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)


def write_byte_level(folder: Path) -> Path:
    """Byte-level BPE with ChatML marks as GPT-2's descendants have it; `<think>` is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return _write(folder, tokenizer, CHATML, bos_token=special[1], eos_token=special[2])


def write_sentencepiece(folder: Path, *, prepend_scheme: str = "first") -> Path:
    """BPE over whole texts with byte fallback and BOS, as the first Llama and Mistral have it."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    draft = Tokenizer(models.BPE(unk_token="<unk>"))
    draft.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        limit_alphabet=80,
        special_tokens=special + byte_tokens,
        show_progress=False,
    )
    draft.train_from_iterator(CORPUS, trainer)
    trained = json.loads(draft.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=trained["vocab"],
            merges=[(left, right) for left, right in trained["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return _write(folder, tokenizer, INSTRUCT, **names)


def write_llama2(folder: Path) -> Path:
    """The same as Llama 2's file says it: a normalizer sets the first space before every part of a
    text that special tokens divide."""
    write_sentencepiece(folder)
    normalizers = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    normalizer = {"type": "Sequence", "normalizers": normalizers}
    return change_tokenizer(folder, normalizer=normalizer, pre_tokenizer=None)


def write_unigram(folder: Path) -> Path:
    """Unigram with its special tokens among the pieces, where plain text could reach them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return _write(folder, tokenizer, INSTRUCT, **names)


def write_word_level(folder: Path) -> Path:
    """Whole words, special tokens and all; no chat template."""
    words = sorted({word for line in CORPUS for word in line.split()})
    special = ["[UNK]", "[BOS]", "[EOS]"]
    vocab = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    names = {"unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return _write(folder, tokenizer, None, **names)


def change_tokenizer(folder: Path, **parts: Any) -> Path:
    """Sets parts of a folder's tokenizer.json."""
    return _change(folder / "tokenizer.json", parts)


def change_settings(folder: Path, **settings: Any) -> Path:
    """Sets entries of a folder's tokenizer_config.json."""
    return _change(folder / "tokenizer_config.json", settings)


def _change(path: Path, parts: dict[str, Any]) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **parts}), "utf-8")
    return path.parent


def _write(folder: Path, tokenizer: Tokenizer, template: str | None, **names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder
