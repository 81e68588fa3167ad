"""`millrace up`: starts the whole stack on this machine and keeps it running."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from millrace.config.environment import current_environment
from millrace.config.home import Home, millrace_home
from millrace.config.loader import (
    add_flags,
    check_variables,
    config_from_flags,
    declared_settings,
    flags_as_variables,
)
from millrace.core.errors import Conflict
from millrace.core.own_command import own_command
from millrace.hub.servable import check_entry
from millrace.telemetry.log_line import log_line

from .config import report_settings
from .console import Console
from .service_settings import explain_service, find_settings
from .stack.background import start_in_background
from .stack.command import run_millrace
from .stack.first_answer import FirstAnswer
from .stack.log_file import begin_log
from .stack.metrics_targets import remove_targets, write_targets
from .stack.model_choice import find_or_pull, require_fit, served_model
from .stack.options import choose_model, public_endpoints, require_startable, wiring_options
from .stack.preparation import prepare_weights
from .stack.run_file import new_stack_record, running_stack, stack_lock
from .stack.servers import find_server
from .stack.settings_file import StackSettings, write_settings_file
from .stack.stack_view import OWN_NAME, StackView
from .stack.supervisor import PartFailed, Supervisor
from .stack.topology import ProcessSpec, Topology, load_topology
from .stack.wiring import Wiring, wire_stack
from .up_config import UpConfig

STOPPING = "stopping; once more stops at once"


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "up",
        help="start the whole stack here and keep it running",
        description="Starts servers and services, shows one answer, runs until Ctrl-C.",
        usage="millrace up [--detach] [--setting value ...]",
    )
    parser.add_argument("--detach", action="store_true", help="return when the stack is ready")
    parser.add_argument("--in-background", action="store_true", help=argparse.SUPPRESS)
    add_flags(parser, UpConfig, "up", inherited=_inherited_default)


def _inherited_default(path: str) -> str:
    """What holds if neither `up` nor the service is told: the default of `worker.model`."""
    table, _, name = path.partition(".")
    declared = declared_settings(find_settings(load_topology(), table), table)
    return next(item.text for item in declared if item.name == name)


def run(args: argparse.Namespace) -> int:
    """Runs until SIGINT or SIGTERM; 1 where a part fails."""
    environ = current_environment()
    if args.config:
        # For the services too: the file has a table for each.
        environ["MILLRACE_CONFIG"] = os.path.abspath(args.config)
    home = millrace_home(environ)
    check_variables(environ)
    config = config_from_flags(UpConfig, "up", args, environ=environ)
    config.check()
    if record := running_stack(home):
        raise Conflict(
            f"a stack is already running (pid {record.pid}); stop it with `{own_command('down')}`"
        )
    topology = load_topology()
    require_startable(config, topology, home, environ)
    model = choose_model(config, topology, environ)
    check_fit = partial(require_fit, config=config, environ=environ) if config.fit_check else None
    entry = find_or_pull(model, home, check_fit)
    if not args.in_background:
        check_entry(entry, home)
    if check_fit is not None:
        check_fit(entry)
    prepare_weights(entry, config, environ, home)
    if args.detach:
        settings = flags_as_variables(UpConfig, "up", args)
        return start_in_background(home, {**environ, **settings}, Console())
    with stack_lock(home):
        options = wiring_options(config, topology, served_model(model, entry), home, environ)
        wiring = wire_stack(topology, options, home, _program_finder(environ))
        _check_settings(topology, wiring, environ)
        job = _Foreground(config, home, wiring, environ, is_background=args.in_background)
        if options.tracing.note:
            job.note(options.tracing.note)
        return asyncio.run(job.run(entry.name, public_endpoints(options)))


def _program_finder(environ: Mapping[str, str]) -> Any:
    def find_program(spec: ProcessSpec) -> Path:
        return find_server(spec, environ.get("PATH")).path

    return find_program


def _check_settings(topology: Topology, wiring: Wiring, environ: Mapping[str, str]) -> None:
    """A wrong setting of any service is told before the first process starts."""
    for instance in wiring.instances:
        if instance.spec.config:
            explain_service(topology, instance.spec.name, {**environ, **instance.environ})


def _started_settings(wiring: Wiring, environ: Mapping[str, str]) -> StackSettings:
    topology, found = load_topology(), {}
    for instance in wiring.instances:
        if instance.spec.config:
            told = {**environ, **instance.environ}
            settings = explain_service(topology, instance.spec.name, told)
            found[instance.name] = report_settings(settings, instance.environ)
    return found


class _Foreground:
    """One run of the stack with its output on this terminal."""

    def __init__(
        self,
        config: UpConfig,
        home: Home,
        wiring: Wiring,
        environ: Mapping[str, str],
        *,
        is_background: bool,
    ) -> None:
        self._config = config
        self._home = home
        self._wiring = wiring
        self._environ = environ
        self._console = Console()
        names = [instance.name for instance in wiring.instances]
        servers = {instance.name for instance in wiring.instances if instance.spec.is_server}
        quiet = frozenset(names if is_background else servers)
        self._view = StackView(self._console, names, quiet=quiet)
        self._log = begin_log(home.logs / f"{OWN_NAME}.log")
        self._began = time.monotonic()
        self._is_stopping = False

    def note(self, message: str) -> None:
        """One line about the stack as a whole, kept too: what ended is asked for later."""
        self._log.write_line(log_line(OWN_NAME, message))
        self._view.note(message)

    async def run(self, model: str, endpoints: dict[str, str]) -> int:
        """Supervises until told to stop."""
        urls = {
            instance.name: instance.spec.url.replace("{self.address}", instance.address)
            for instance in self._wiring.instances
            if instance.spec.url
        }
        record = new_stack_record(model, {**endpoints, **urls})
        write_settings_file(self._home, _started_settings(self._wiring, self._environ))
        supervisor = Supervisor(
            self._wiring,
            self._home,
            record,
            environ=self._environ,
            show=self._view.show,
            note=self.note,
            run_init=partial(run_millrace, environ={**self._environ, **self._wiring.init_environ}),
            max_stall_s=self._config.max_stall_s,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop, supervisor)
        self.note(f"starting {model}; logs are in {self._home.logs}")
        first = FirstAnswer(self._console, self._view, endpoints, self._config)
        write_targets(self._home, self._wiring.instances)
        try:
            await supervisor.run(lambda: first.show(self._began))
        except PartFailed as exc:
            self._view.release()
            for line in exc.log_lines:
                self._console.line(f"    {line}")
            self._log.write_line(log_line(OWN_NAME, str(exc), "ERROR"))
            print(f"millrace: {exc}", file=sys.stderr)
            return 1
        finally:
            remove_targets(self._home)
        self.note("stopped")
        return 0

    def _stop(self, supervisor: Supervisor) -> None:
        self._view.release()
        self.note("stopping at once" if self._is_stopping else STOPPING)
        self._is_stopping = True
        supervisor.request_stop()
