"""A model hub on loopback and tiny models, for the hub's tests."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from huggingface_hub import close_session

from millrace.config.home import Home
from millrace.hub import hub_client
from millrace.hub.safetensors_file import write_safetensors

COMMIT = "c" * 40

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


@dataclass
class FakeHub:
    """What the hub answers: files by name, and how it misbehaves."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    gated: bool = False
    wrong_hash: bool = False
    down: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    on_download: Callable[[], None] = lambda: None

    def ranges_of(self, name: str) -> list[str | None]:
        """The Range header of each download of one file."""
        return [
            ranged
            for method, path, ranged in self.requests
            if method == "GET" and path.endswith(f"/resolve/{COMMIT}/{name}")
        ]


class FakeHubHandler(BaseHTTPRequestHandler):
    """Model info and file downloads, as huggingface_hub asks for them."""

    hub: ClassVar[FakeHub]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(("GET", path, self.headers.get("Range")))
        if self.hub.down:
            self._answer(503, b"")
        elif path.startswith("/api/models/org/tiny/revision/main"):
            self._answer(200, json.dumps(self._info()).encode())
        elif path.startswith("/api/models/org/tiny/revision/"):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            self._file(path.rpartition("/")[2])
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _info(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.hub.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content)}
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sha256 = hashlib.sha256(content).hexdigest()
            if self.hub.wrong_hash:
                sha256 = "0" * 64
            sibling["blobId"] = blob
            if name.endswith(".safetensors"):
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        return {
            "id": "org/tiny",
            "sha": COMMIT,
            "siblings": siblings,
            "cardData": {"license": "mit"},
        }

    def _file(self, name: str) -> None:
        if self.hub.gated and "Bearer good" not in self.headers.get("Authorization", ""):
            self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
            return
        self.hub.on_download()
        content = self.hub.files[name]
        ranged = self.headers.get("Range")
        start = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged else 0
        body = content[start:]
        self.send_response(206 if ranged else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cuts = self.hub.cut_after.get(name)
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty one; nothing is looked for, or deleted, in the caches of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "old-cache"))
    return Home(tmp_path / "home")


@pytest.fixture
def fake_hub(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A hub that has one model, org/tiny, and is where huggingface_hub looks."""
    hub = FakeHub()
    hub.files = {path.name: path.read_bytes() for path in sorted(tiny_model.iterdir())}
    hub.files["README.md"] = b"# tiny\n"
    hub.files["pytorch_model.bin"] = b"never fetched"
    hub.files["original/consolidated.safetensors"] = b"never fetched"
    handler = type("Handler", (FakeHubHandler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_client, "_RETRY_DELAYS_S", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    close_session()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def tiny_shapes(content: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model that a config.json describes, by name."""
    if content["model_type"] == "gpt_neox":
        return gpt_neox_shapes(content)
    hidden, inter = content["hidden_size"], content["intermediate_size"]
    heads = content["num_attention_heads"] * content["head_dim"]
    kv_heads = content["num_key_value_heads"] * content["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (content["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not content["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (content["vocab_size"], hidden)
    for layer in range(content["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.self_attn.q_proj.weight"] = (heads, hidden)
        shapes[f"{prefix}.self_attn.k_proj.weight"] = (kv_heads, hidden)
        shapes[f"{prefix}.self_attn.v_proj.weight"] = (kv_heads, hidden)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, heads)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (inter, hidden)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (inter, hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, inter)
    return shapes


def gpt_neox_shapes(content: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The same of a GPT-NeoX, which takes the generic route."""
    hidden, inter, vocab = (
        content[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    shapes: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (vocab, hidden)}
    biased: dict[str, tuple[int, ...]] = {"gpt_neox.final_layer_norm": (hidden,)}
    for layer in range(content["num_hidden_layers"]):
        prefix = f"gpt_neox.layers.{layer}"
        biased[f"{prefix}.input_layernorm"] = (hidden,)
        biased[f"{prefix}.post_attention_layernorm"] = (hidden,)
        biased[f"{prefix}.attention.query_key_value"] = (3 * hidden, hidden)
        biased[f"{prefix}.attention.dense"] = (hidden, hidden)
        biased[f"{prefix}.mlp.dense_h_to_4h"] = (inter, hidden)
        biased[f"{prefix}.mlp.dense_4h_to_h"] = (hidden, inter)
    for name, shape in biased.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    if not content["tie_word_embeddings"]:
        shapes["embed_out.weight"] = (vocab, hidden)
    return shapes


def write_tiny_model(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """A model folder with small random bf16 weights and a tokenizer of a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    content = TINY_CONFIG | config
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    words = {f"w{number}": number for number in range(content["vocab_size"])}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    shapes = tiny_shapes(content)
    rng = np.random.default_rng(seed)
    write_safetensors(
        folder / "model.safetensors",
        [(name, "BF16", shape) for name, shape in shapes.items()],
        [rng.bytes(2 * math.prod(shape)) for shape in shapes.values()],
    )
    return folder


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


@pytest.fixture
def make_generic_model(make_model: Callable[..., Path]) -> Callable[..., Path]:
    """The same of a model that only transformers knows."""
    return lambda name, **config: make_model(
        name,
        **{"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
        | {"tie_word_embeddings": False}
        | config,
    )


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes another tiny model into a folder of the given name."""
    return lambda name, **config: write_tiny_model(tmp_path / name, **config)


def byte_level_alphabet() -> list[str]:
    """GPT-2's printable stand-ins of the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


@dataclass
class TinyGguf:
    """A synthetic GGUF file and the float32 tensors that went in, in the checkpoint's order."""

    path: Path
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def permute_rotary(
    values: np.ndarray[Any, np.dtype[np.float32]], num_heads: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What llama.cpp's converter does to Q and K: the halves of each head interleaved."""
    head_dim = values.shape[0] // num_heads
    rows = []
    for head in range(num_heads):
        for index in range(head_dim // 2):
            rows.append(head * head_dim + index)
            rows.append(head * head_dim + head_dim // 2 + index)
    return values[rows]


@pytest.fixture
def make_gguf(tmp_path: Path) -> Callable[..., TinyGguf]:
    """Writes a small Llama as GGUF: 256 bytes, 2 merges and 3 control tokens as vocabulary."""

    def make(*, architecture: str = "llama", pre: str = "smollm", **extra: Any) -> TinyGguf:
        path = tmp_path / f"{architecture}-{pre}.gguf"
        writer = GGUFWriter(str(path), architecture)
        tensors = _add_model(writer)
        _add_vocabulary(writer, pre)
        for key, value in extra.items():
            writer.add_uint32(f"{architecture}.{key}", value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return TinyGguf(path, tensors)

    return make


def _add_model(writer: GGUFWriter) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    hidden, inter, vocab, heads, kv_heads, head_dim = 64, 96, 261, 4, 2, 16
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inter)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_string("general.license", "apache-2.0")
    rng = np.random.default_rng(7)

    def random(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return rng.standard_normal(shape, dtype=np.float32)

    layer = "model.layers.0"
    tensors = {
        "model.embed_tokens.weight": random(vocab, hidden),
        "model.norm.weight": random(hidden),
        f"{layer}.input_layernorm.weight": random(hidden),
        f"{layer}.self_attn.q_proj.weight": random(heads * head_dim, hidden),
        f"{layer}.self_attn.k_proj.weight": random(kv_heads * head_dim, hidden),
        f"{layer}.self_attn.v_proj.weight": random(kv_heads * head_dim, hidden),
        f"{layer}.self_attn.o_proj.weight": random(hidden, heads * head_dim),
        f"{layer}.post_attention_layernorm.weight": random(hidden),
        f"{layer}.mlp.gate_proj.weight": random(inter, hidden),
        f"{layer}.mlp.up_proj.weight": random(inter, hidden),
        f"{layer}.mlp.down_proj.weight": random(hidden, inter),
    }
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        f"{layer}.input_layernorm.weight": "blk.0.attn_norm.weight",
        f"{layer}.self_attn.q_proj.weight": "blk.0.attn_q.weight",
        f"{layer}.self_attn.k_proj.weight": "blk.0.attn_k.weight",
        f"{layer}.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        f"{layer}.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        f"{layer}.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        f"{layer}.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        f"{layer}.mlp.up_proj.weight": "blk.0.ffn_up.weight",
        f"{layer}.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }
    for name, values in tensors.items():
        stored = values
        if ".q_proj." in name:
            stored = permute_rotary(values, heads)
        elif ".k_proj." in name:
            stored = permute_rotary(values, kv_heads)
        if ".gate_proj." in name:
            packed = quantize(stored, GGMLQuantizationType.Q8_0)
            writer.add_tensor(names[name], packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(names[name], stored)
    return tensors


def _add_vocabulary(writer: GGUFWriter, pre: str) -> None:
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = control + byte_level_alphabet() + ["he", "ĠĠ"]
    types = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["h e", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages[0]['content'] }}")
