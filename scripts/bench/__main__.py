"""`make bench`: the machine, the kernels, the engine alone, the whole stack.

Starts a stack of its own, or measures a running one (--url, --grpc-address), of which only the
clients' side can be seen. The machine's rates of the same moment stand beside every figure: on a
CPU they are what decides. A run takes about five minutes, `--quick` under one. Tables go to the
terminal and, as report.md, into bench-results/, with JSON and plots of throughput and latency.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from millrace.cli.console import Console
from millrace.engine.config import QUANTIZATIONS
from millrace.engine.kernels.cpu.library import Kernels
from millrace.engine.machine import usable_cpus
from millrace.hub.catalog import resolve_model

from .about import describe_run
from .attention import measure_attention
from .engine import measure_engine
from .kernels_here import kernels_here
from .linears import measure_linears
from .machine import MachineProbe, one_core_tflops
from .model_shapes import ModelShapes
from .plots import write_plots
from .progress import show_progress
from .report import report_sheet
from .scale import FULL, QUICK, Scale
from .stack import StackFlags, measure_own_stack, measure_running_stack
from .telemetry import telemetry_cost

MODEL = "smollm2-135m-instruct"
RESULTS = Path("bench-results")
PARTS = ("kernels", "engine", "stack")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the flags ask for; exits with 2 for flags that do not fit together."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if bool(arguments.url) != bool(arguments.grpc_address):
        parser.error("--url and --grpc-address go together")
    scale = QUICK if arguments.quick else FULL
    report = _measure_machine_and_engine(arguments.only, scale)
    if arguments.url:
        report |= measure_running_stack(arguments.url, arguments.grpc_address, scale)
    elif "stack" in arguments.only:
        flags = StackFlags(arguments.dtype, arguments.quantization, arguments.workers)
        report |= measure_own_stack(flags, scale)
    if arguments.telemetry_pairs:
        report["telemetry"] = telemetry_cost(arguments.telemetry_pairs, arguments.dtype)
    default = RESULTS / "quick" if arguments.quick else RESULTS
    _write(name_served_model(report), arguments.output_dir or default)


def name_served_model(report: dict[str, Any]) -> dict[str, Any]:
    """The report; if a stack was measured, it is of the model that answered there."""
    if report.get("loads"):
        report["about"]["model"] = report["loads"][0]["model"]
    return report


def _measure_machine_and_engine(parts: Sequence[str], scale: Scale) -> dict[str, Any]:
    model = resolve_model(MODEL).path
    kernels = kernels_here(model)
    show_progress("machine: read bandwidth and multiply rate")
    probe = MachineProbe(kernels)
    report: dict[str, Any] = {"about": describe_run(MODEL)}
    report |= {"machine": _machine(probe, kernels, model)}
    if kernels is None:
        show_progress("kernels and engine are left out: no C++ kernels here")
        return report
    shapes = ModelShapes.of(model)
    if "kernels" in parts:
        report["linears"] = measure_linears(kernels, shapes, probe, scale)
        report["attention"] = measure_attention(kernels, shapes, probe, scale)
    if "engine" in parts:
        report["engine"] = measure_engine(model, kernels, probe, scale)
    return report


def _machine(probe: MachineProbe, kernels: Kernels | None, model: Path) -> dict[str, Any]:
    rates = {f"{way}, all cores": rate for way, rate in probe.ways.items()}
    if kernels is not None:
        one = kernels_here(model, num_threads=1)
        assert one is not None
        for kind in ("bfloat16", "int8"):
            rates[f"{one.path} {kind}, one core"] = one_core_tflops(one, kind)
    return {
        "cores": usable_cpus(),
        "path": "torch" if kernels is None else kernels.path,
        "read_gb_per_s": round(probe.rates().read_gb_per_s, 2),
        "multiply_tflops": {way: round(rate, 4) for way, rate in rates.items()},
        "best": probe.best_way,
    }


def _write(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.json"
    path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    sheet = report_sheet(report)
    sheet.show(Console())
    tables = folder / "report.md"
    plots = write_plots(report, folder)
    for plot in plots:
        sheet.text(f"![{plot.stem}]({plot.name})")
    tables.write_text(sheet.markdown(), "utf-8")
    names = ", ".join(str(written) for written in [tables, path, *plots])
    print(f"\nWritten: {names}")


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(PARTS)}")
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument(
        "--only", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test; its figures are rough")
    parser.add_argument(
        "--output-dir", type=Path, help="for tables, JSON and plots; bench-results by default"
    )
    parser.add_argument("--url", default="", help="HTTP address of a running stack")
    parser.add_argument("--grpc-address", default="", help="its gRPC address, host:port")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--quantization", default="none", choices=QUANTIZATIONS)
    parser.add_argument("--workers", type=int, default=1, help="workers of the own stack")
    parser.add_argument(
        "--telemetry-pairs",
        type=int,
        default=0,
        help="pairs of runs with and without telemetry, on two more stacks; 0 leaves them out",
    )
    return parser


if __name__ == "__main__":
    main()
