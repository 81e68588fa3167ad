"""Starting and ending the tokenizer process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from millrace.config.home import millrace_home
from millrace.core.errors import ConfigError
from millrace.tokenizer.__main__ import load_codecs

COMMAND = [sys.executable, "-m", "millrace.tokenizer"]


def test_unknown_model_stops_the_start_with_its_reason() -> None:
    command = [*COMMAND, "--models", "./no-such-folder"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "no-such-folder does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_no_models_is_a_config_error() -> None:
    with pytest.raises(ConfigError) as caught:
        load_codecs(())
    assert caught.value.field == "models"


def test_process_says_ready_and_ends_on_sigterm() -> None:
    if not (millrace_home().models / "smollm2-135m-instruct" / "tokenizer.json").is_file():
        pytest.skip("the default model is not on this machine")
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert " ready tokenizer 127.0.0.1:" in line


def test_neither_transformers_nor_torch_is_imported() -> None:
    program = (
        "import sys, millrace.tokenizer.__main__\n"
        "sys.exit(bool({'transformers', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 0
