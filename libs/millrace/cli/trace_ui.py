"""`millrace trace-ui`: Arize Phoenix on this machine, in an environment of its own.

Phoenix is never a dependency: it is large, and its licence is not ours. It is installed under
MILLRACE_HOME on request, serves on loopback, and the span collector forwards to it while it is up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from millrace.config.environment import current_environment
from millrace.config.home import Home, millrace_home
from millrace.core.errors import ConfigError, Conflict, Unavailable
from millrace.telemetry.collector.replay import replay_bodies
from millrace.telemetry.store import STORE_FILE, TraceStore
from millrace.telemetry.tracing_ui import RunningUi, UiFolder, command_of, ui_folder

from .pip_install import pip_install
from .stack.tracing import stack_id

PHOENIX_VERSION = "20.26.1"
DEFAULT_PORT = 6006
HOST = "127.0.0.1"
NOTICE = f"""\
This installs Arize Phoenix {PHOENIX_VERSION}, a tracing UI, from the Python package index:
  licence   Elastic License 2.0 (source available; not to be offered to others as a service)
  size      about 200 MB to download in some 150 packages, about 850 MB on disk
  place     {{place}}
Nothing else in Millrace needs it; `rm -r` of that folder removes it."""
# Phoenix also takes spans by gRPC, on every interface and with no setting against it. Nobody needs
# that here, so its server is never entered. Holds for PHOENIX_VERSION.
LAUNCH = """\
import phoenix.server.grpc_server
async def _stay_closed(self):
    return None
phoenix.server.grpc_server.GrpcServer.__aenter__ = _stay_closed
from phoenix.server.main import main
main()
"""
START_S = 120.0
STOP_S = 10.0
POST_S = 30.0
POLL_S = 0.25


def _marker(folder: UiFolder) -> Path:
    """Exists once the installation of this version has finished."""
    return folder.root / f"installed-{PHOENIX_VERSION}"


def add_parser(subparsers: Any) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "trace-ui", help="install and start a tracing UI (Arize Phoenix) on loopback"
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"where it listens; default: {DEFAULT_PORT}"
    )
    parser.add_argument("--stop", action="store_true", help="stop the one that runs")
    parser.add_argument("--yes", action="store_true", help="install without asking")
    parser.add_argument("--install-only", action="store_true", help="install and do not start")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; the exit status. Raises MillraceError where it cannot."""
    folder = ui_folder(millrace_home())
    if args.stop:
        return _stop(folder)
    if not _marker(folder).is_file():
        _install(folder, is_agreed=args.yes)
    return 0 if args.install_only else _serve(folder, args.port)


def _install(folder: UiFolder, *, is_agreed: bool) -> None:
    print(NOTICE.format(place=folder.root), flush=True)
    if not is_agreed and not _ask("Install it? [y/N] "):
        raise ConfigError("not installed; --yes installs it without asking")
    shutil.rmtree(folder.venv, ignore_errors=True)
    folder.root.mkdir(parents=True, exist_ok=True)
    environ = _environment()
    command = [sys.executable, "-m", "venv", str(folder.venv)]
    status = subprocess.run(command, env=environ, check=False).returncode
    if status != 0:
        raise Unavailable(f"{' '.join(command)} ended with status {status}")
    packages = [f"arize-phoenix=={PHOENIX_VERSION}"]
    pip_install(folder.python, packages, folder.root / "install.log", environ)
    _marker(folder).touch()


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _serve(folder: UiFolder, port: int) -> int:
    if _is_taken(port):
        raise Conflict(f"{HOST}:{port} is in use; choose another with --port", field="port")
    folder.data.mkdir(parents=True, exist_ok=True)
    environ = _environment() | phoenix_environment(folder.data, port)
    command = [str(folder.python), "-c", LAUNCH, "serve"]
    log_path = folder.root / "phoenix.log"
    with (
        log_path.open("wb") as log,
        # Ctrl-C is for us alone; we end the child.
        subprocess.Popen(
            command, env=environ, stdout=log, stderr=log, start_new_session=True
        ) as process,
        _terminated_as_interrupt(),
    ):
        folder.write_running(RunningUi(process.pid, port))
        try:
            _wait_until_up(process, port, log_path)
            num_shown = replay(millrace_home(), port)
            print(f"earlier requests: {num_shown}, they show up one by one", flush=True)
            _announce(port)
            process.wait()
        except KeyboardInterrupt:
            print("stopping", flush=True)
        finally:
            _end(process)
            folder.run_file.unlink(missing_ok=True)
    if process.returncode not in (0, -signal.SIGTERM, -signal.SIGKILL):
        raise Unavailable(f"Phoenix ended with status {process.returncode}; see {log_path}")
    return 0


def phoenix_environment(data: Path, port: int) -> dict[str, str]:
    """Loopback only, no usage reports, nothing fetched from elsewhere, state in `data`."""
    return {
        "PHOENIX_HOST": HOST,
        "PHOENIX_PORT": str(port),
        "PHOENIX_WORKING_DIR": str(data),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
    }


def _environment() -> dict[str, str]:
    """Ours, without what would make another environment's packages or settings show through."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {
        name: value
        for name, value in current_environment().items()
        if name not in hidden and not name.startswith(("PHOENIX_", "OTEL_"))
    }


def _announce(port: int) -> None:
    print(f"tracing UI: http://{HOST}:{port}/ (Ctrl-C stops it)")
    print("requests made from now on to the stack of this MILLRACE_HOME show up there too")
    print(
        "prompts and answers do not, unless the stack is started with "
        "MILLRACE_GATEWAY_TRACE_CONTENT=true",
        flush=True,
    )


def replay(home: Home, port: int) -> int:
    """Shows the UI the requests of before, and returns how many; what it refuses is left out."""
    folder, store_path = ui_folder(home), home.run / STORE_FILE
    if not store_path.is_file():
        return 0
    num_shown = 0
    with contextlib.closing(TraceStore(store_path)) as store, contextlib.suppress(OSError):
        newest = max((request.seq for request in store.latest(1)), default=0)
        after_seq = _replayed_seq(folder, newest)
        for num_requests, body in replay_bodies(store, stack_id(home), after_seq):
            _post(port, body)
            num_shown += num_requests
        folder.replayed.write_text(json.dumps({"seq": newest}), encoding="utf-8")
    return num_shown


def _replayed_seq(folder: UiFolder, newest: int) -> int:
    """Up to where the store has been replayed; 0 for a store that was made anew since."""
    try:
        seq = int(json.loads(folder.replayed.read_text(encoding="utf-8"))["seq"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return seq if seq <= newest else 0


def _post(port: int, body: bytes) -> None:
    request = urllib.request.Request(
        f"http://{HOST}:{port}/v1/traces",
        body,
        {"content-type": "application/x-protobuf"},
        method="POST",
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=POST_S) as reply:
        reply.read()


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    print("starting Phoenix ...", flush=True)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(f"Phoenix ended with status {process.returncode}; see {log_path}")
        # Not listening yet, or listening and not ready.
        with contextlib.suppress(OSError), opener.open(f"http://{HOST}:{port}/", timeout=5):
            return
        time.sleep(POLL_S)
    raise Unavailable(f"Phoenix did not answer within {START_S:.0f} s; see {log_path}")


def _stop(folder: UiFolder) -> int:
    running = folder.running()
    if running is None:
        folder.run_file.unlink(missing_ok=True)
        print("no tracing UI runs")
        return 0
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while str(folder.python) in command_of(running.pid):
        if time.monotonic() > deadline:
            os.kill(running.pid, signal.SIGKILL)
            break
        time.sleep(POLL_S)
    folder.run_file.unlink(missing_ok=True)
    print("stopped")
    return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@contextlib.contextmanager
def _terminated_as_interrupt() -> Any:
    """SIGTERM to us ends the child too, instead of leaving it behind."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
