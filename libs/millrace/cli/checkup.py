"""The checks of `millrace doctor`, one function each."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from millrace.config.home import Home, millrace_home
from millrace.config.loader import check_variables
from millrace.core.errors import ConfigError, MillraceError, UnknownModel
from millrace.core.own_command import own_command
from millrace.core.secret import redacted
from millrace.hub.byte_size import format_bytes

from .proxies import hides_loopback, named_proxies
from .readiness import describe_readiness, missing_parts
from .service_settings import explain_service, settings_names
from .stack.ports import can_bind, describe_port_owner
from .stack.run_file import running_stack
from .stack.servers import find_server
from .stack.topology import load_topology
from .stack.tracing import plan_tracing
from .status import stack_report

MIN_PYTHON = (3, 11)
MIN_FREE_DISK_BYTES = 2 << 30
MIN_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: level ok, warn or fail, and what to do about it."""

    check: str
    level: str
    text: str
    advice: str = ""


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """Every check, in the order in which problems would show; one that fails stops no other."""
    found = [
        *_guarded("python", _python),
        *_guarded("packages", _packages),
        *_guarded("cpu", _cpu),
        *_guarded("gpu", lambda: _gpu(environ)),
        *_guarded("memory", _memory),
        *_guarded("settings", lambda: _settings(environ)),
        *_guarded("servers", lambda: _servers(environ)),
        *_guarded("proxy", lambda: _proxy(environ)),
    ]
    try:
        home = millrace_home(environ)
    except MillraceError as exc:
        return [*found, Finding("home", "fail", exc.message)]
    return [
        *found,
        *_guarded("home", lambda: _home(home)),
        *_guarded("kernels", lambda: check_kernels(home, environ)),
        *_guarded("disk", lambda: _disk(home)),
        *_guarded("tracing", lambda: _tracing(home, environ)),
        *_guarded("model", lambda: _model(home, environ)),
        *_guarded("stack", lambda: _stack(home, environ)),
    ]


def _guarded(check: str, look: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    try:
        found = look()
    except (MillraceError, OSError) as exc:
        return [Finding(check, "fail", str(exc))]
    except Exception as exc:
        text = f"the check itself failed: {type(exc).__name__}: {redacted(str(exc))}"
        return [Finding(check, "fail", text)]
    return found if isinstance(found, list) else [found]


def _home(home: Home) -> Finding:
    try:
        home.require_writable((home.run, home.logs, home.data))
    except MillraceError as exc:
        return Finding("home", "fail", exc.message)
    return Finding("home", "ok", f"MILLRACE_HOME is {home.root}")


def _proxy(environ: Mapping[str, str]) -> list[Finding]:
    proxies = ", ".join(f"{name}={proxy}" for name, proxy in named_proxies(environ).items())
    if not hides_loopback(environ):
        return [Finding("proxy", "ok", f"proxy: {proxies}")] if proxies else []
    text = f"{proxies} without no_proxy for this machine: curl and other clients miss the gateway"
    advice = "export no_proxy=127.0.0.1,localhost,::1 (our own services and commands need nothing)"
    return [Finding("proxy", "warn", text, advice)]


def _tracing(home: Home, environ: Mapping[str, str]) -> Finding:
    plan = plan_tracing(environ, home, is_kept=True)
    return Finding("tracing", "ok", plan.note or "traces are kept here")


def _python() -> Finding:
    text = f"Python {platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < MIN_PYTHON:
        return Finding("python", "fail", text, "use Python 3.11 or newer: PYTHON=... make setup")
    return Finding("python", "ok", text)


def _packages() -> Finding:
    names = ("grpc", "nats", "redis", "tokenizers", "torch", "transformers", "uvicorn")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        text = f"not installed: {', '.join(missing)}"
        return Finding("packages", "fail", text, "pip install 'millrace[all]', or make setup")
    return Finding("packages", "ok", "all services can be imported")


def _cpu() -> Finding:
    from millrace.engine.machine import usable_cpus

    return Finding("cpu", "ok", f"{usable_cpus()} usable cores, {platform.machine()}")


def check_kernels(
    home: Home, environ: Mapping[str, str], report: Callable[[str], None] = lambda text: None
) -> Finding:
    """Which instruction path the cpu backend takes, and why not a better one."""
    from millrace.engine.kernels.cpu.build import build_library, can_build
    from millrace.engine.kernels.cpu.instruction_paths import choose_path, missing_for_better
    from millrace.engine.kernels.cpu.loadable import why_not_loadable

    slow = "the model runs on plain torch, several times as slow"
    asked = str(explain_service(load_topology(), "worker", environ)["instruction_path"].value)
    path = choose_path(asked)
    if path is None:
        return Finding("kernels", "warn", f"no CPU kernels for this processor: {slow}")
    if not can_build(path):
        advice = "install g++ or clang++, or set CXX"
        return Finding("kernels", "warn", f"no C++ compiler for the CPU kernels: {slow}", advice)
    try:
        library = build_library(path, home.cache / "kernels", report)
    except ConfigError as exc:
        if exc.field != "cache_dir":
            raise
        return Finding("kernels", "warn", f"{exc.message}: {slow}", "set MILLRACE_HOME elsewhere")
    if reason := why_not_loadable(library):
        return Finding("kernels", "warn", f"cannot load the CPU kernels: {reason}: {slow}")
    return Finding("kernels", "ok", f"CPU kernels: {path.name}{missing_for_better(path)}")


def _gpu(environ: Mapping[str, str]) -> Finding:
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return Finding("gpu", "ok", "no NVIDIA GPU: the model runs on the CPU")
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    shown = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=False
    )
    if shown.returncode != 0:
        return Finding("gpu", "warn", "nvidia-smi fails", "check the driver; the CPU is used else")
    return Finding("gpu", "ok", f"GPU {shown.stdout.strip().replace(chr(10), '; ')}")


def _memory() -> Finding:
    from millrace.engine.machine import available_memory_bytes

    available = available_memory_bytes()
    text = f"{format_bytes(available)} of memory available (cgroup limits respected)"
    if available < MIN_MEMORY_BYTES:
        advice = f"free some, or see what fits: {own_command('models fit smollm2')}"
        return Finding("memory", "warn", text, advice)
    return Finding("memory", "ok", text)


def _disk(home: Home) -> Finding:
    folder = home.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{format_bytes(free)} free for {home.root}"
    if free < MIN_FREE_DISK_BYTES:
        return Finding("disk", "warn", text, "free some, or point MILLRACE_HOME elsewhere")
    return Finding("disk", "ok", text)


def _servers(environ: Mapping[str, str]) -> list[Finding]:
    found = []
    for spec in load_topology().processes:
        if not spec.is_server:
            continue
        try:
            program = find_server(spec, environ.get("PATH"))
        except MillraceError as exc:
            found.append(Finding(spec.name, "fail", exc.message))
            continue
        text = f"{spec.name}: {program.path.name} {program.version} from {program.origin}"
        found.append(Finding(spec.name, "ok", text))
    return found


def _settings(environ: Mapping[str, str]) -> Finding:
    topology = load_topology()
    try:
        check_variables(environ)
        for name in settings_names(topology):
            explain_service(topology, name, environ)
    except MillraceError as exc:
        return Finding("settings", "fail", exc.message, f"see {own_command('config show')}")
    except ModuleNotFoundError as exc:
        return Finding("settings", "fail", f"{exc.name} is not installed")
    return Finding("settings", "ok", "all settings are valid")


def _model(home: Home, environ: Mapping[str, str]) -> Finding:
    from millrace.hub.catalog import DEFAULT_MODEL, resolve_model

    model = environ.get("MILLRACE_UP_MODEL") or environ.get("MILLRACE_WORKER_MODEL")
    try:
        entry = resolve_model(model or DEFAULT_MODEL, home)
    except UnknownModel as exc:
        return Finding("model", "warn", exc.message, f"{own_command('up')} fetches it by itself")
    except MillraceError as exc:
        return Finding("model", "fail", exc.message)
    size = format_bytes(entry.size_bytes)
    return Finding("model", "ok", f"model {entry.name}: {size}, route {entry.route}")


def _stack(home: Home, environ: Mapping[str, str]) -> list[Finding]:
    record = running_stack(home)
    if record is None:
        return [_port(*pair, environ) for pair in (("http_port", 8080), ("grpc_port", 50051))]
    report = stack_report(record)
    bad = [item["name"] for item in report["processes"] if item["state"] != "ready"]
    if bad:
        advice = own_command(f"logs {bad[0]}")
        return [Finding("stack", "fail", f"not ready: {', '.join(bad)}", advice)]
    gateway = report["gateway"]
    said = describe_readiness(gateway["status"], gateway["answer"])
    if not gateway["is_ready"]:
        suspect = next(iter(missing_parts(gateway["answer"])), "gateway")
        return [Finding("stack", "fail", said, own_command(f"logs {suspect}"))]
    if said != "ready":
        return [Finding("stack", "warn", said, own_command("status"))]
    return [Finding("stack", "ok", f"the stack runs (pid {record.pid}) and is ready")]


def _port(setting: str, default: int, environ: Mapping[str, str]) -> Finding:
    try:
        gateway = explain_service(load_topology(), "gateway", environ)
        port = int(gateway[setting].value)
    except (MillraceError, ModuleNotFoundError):
        # Told by the check of the settings.
        port = default
    if can_bind("127.0.0.1", port):
        return Finding(setting, "ok", f"port {port} is free")
    text = f"port {port} is in use by {describe_port_owner(port)}"
    advice = f"stop it, or: {own_command('up')} --{setting.replace('_', '-')} PORT"
    return Finding(setting, "warn", text, advice)
