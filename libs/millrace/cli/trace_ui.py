"""`millrace trace-ui`: Arize Phoenix on this machine, in an environment of its own.

Phoenix is never a dependency: it is large, and its licence is not ours. It is installed under
MILLRACE_HOME on request, serves on loopback, and the span collector forwards to it while it is up.
"""

from __future__ import annotations

import argparse
import contextlib
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
from millrace.config.home import millrace_home
from millrace.core.errors import ConfigError, Conflict, Unavailable
from millrace.telemetry.tracing_ui import RunningUi, UiFolder, command_of, ui_folder

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
POLL_S = 0.25


def _marker(folder: UiFolder) -> Path:
    """Exists once the installation of this version has finished."""
    return folder.root / f"installed-{PHOENIX_VERSION}"


def add_parser(subparsers: Any) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "trace-ui", help="install and start a tracing UI (Arize Phoenix) on loopback"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port (default 6006)")
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
    pip = [str(folder.python), "-m", "pip", "--disable-pip-version-check", "install"]
    for command in (
        [sys.executable, "-m", "venv", str(folder.venv)],
        [*pip, "--progress-bar", "on", "-q", f"arize-phoenix=={PHOENIX_VERSION}"],
    ):
        status = subprocess.run(command, env=environ, check=False).returncode
        if status != 0:
            raise Unavailable(f"{' '.join(command)} ended with status {status}")
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
    print("requests made from now on to the stack of this MILLRACE_HOME show up there", flush=True)


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
