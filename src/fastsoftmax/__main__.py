"""The main job: what this installation is, how exact it is, how fast beside its peers."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import fastsoftmax as fsm
from fastsoftmax import _check, _peers, _timing

try:
    import rich.box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError:
    Console = None  # type: ignore[assignment, misc]

WIDTH = 100  # of a table where the output is no terminal


class PlainScreen:
    """Readable without any library."""

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        self.line(f"\n{title}")
        for row in (header, ["-" * width for width in widths], *rows):
            first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            self.line("  ".join([row[0].ljust(len(first)), *others]).rstrip())

    @contextlib.contextmanager
    def progress(self, label: str, steps: int) -> Iterator[Callable[[], None]]:
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if sys.stderr.isatty():
                print(f"\r{label}: {100 * done // steps} %", end="", file=sys.stderr, flush=True)

        yield advance
        if sys.stderr.isatty():
            print(file=sys.stderr)


class RichScreen(PlainScreen):
    """The same with Rich: boxes, and a bar that tells how far things are."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = max(self.console.width, WIDTH)

    def line(self, text: str = "") -> None:
        self.console.print(text, markup=False)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        table = Table(title=f"\n{title}", title_justify="left", box=rich.box.SIMPLE_HEAD, title_style="bold")
        table.add_column(header[0], no_wrap=True)
        for name in header[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == _peers.OURS else "")
        self.console.print(table)

    @contextlib.contextmanager
    def progress(self, label: str, steps: int) -> Iterator[Callable[[], None]]:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(label, total=steps)
            yield lambda: bar.advance(task)


def positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
    return value


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fastsoftmax",
        description="Show the configuration, check every function, compare speeds.",
    )
    add = parser.add_argument
    add(
        "--shapes",
        nargs="+",
        choices=_timing.SHAPES,
        default=list(_timing.SHAPES),
        metavar="SHAPE",
        help=f"of {', '.join(_timing.SHAPES)}",
    )
    add(
        "--functions",
        nargs="+",
        choices=_timing.FUNCTIONS,
        default=list(_timing.FUNCTIONS),
        metavar="FUNCTION",
        help=f"to be timed, of {', '.join(_timing.FUNCTIONS)}",
    )
    add(
        "--dtypes",
        nargs="+",
        choices=["float32", "float64"],
        default=["float32"],
        metavar="DTYPE",
        help="to be timed, of float32, float64 (default float32)",
    )
    add(
        "--peers",
        nargs="*",
        choices=_peers.PEERS,
        default=list(_peers.PEERS),
        metavar="PEER",
        help=f"to be timed beside NumPy where installed, of {', '.join(map(repr, _peers.PEERS))}",
    )
    add("--seconds", type=positive_number, default=0.2, help="to time one function of one contender (default 0.2)")
    add("--no-check", action="store_true", help="leave out the check of the results")
    add("--plain", action="store_true", help="plain text, even where Rich is installed")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios (needs Matplotlib)")
    options = parser.parse_args()
    if options.json:
        try:
            options.json.open("a").close()  # better told now than after the work
        except OSError as error:
            parser.error(f"argument --json: {error}")
    return options


def show_configuration(screen: PlainScreen) -> dict[str, Any]:
    config: dict[str, Any] = {**fsm.get_config(), **_timing.describe_machine()}
    screen.line(f"fastsoftmax {config['version']} on {config['cpu']}, {config['system']}")
    here = ", ".join(_check.instruction_sets())
    screen.line(f"  instruction set  {config['isa']} (this CPU has {here})")
    screen.line(f"  threads          {config['threads']} of {config['processors']} processors")
    screen.line(f"  OpenMP           {config['openmp'] or 'none: this build runs on one thread'}")
    screen.line(f"  Python, NumPy    {config['python']}, {config['numpy']}")
    return config


def check_results(screen: PlainScreen) -> list[_check.Outcome]:
    """Check every function; the outcomes hold whether that went well."""
    dtypes = tuple(filter(_check.checkable, ("float32", "float64")))
    lengths = (2, 10, 33, 1000, 10_000)
    with screen.progress("checking", len(_check.FAMILIES) * len(dtypes) * len(lengths)) as advance:
        outcomes = _check.check(dtypes=dtypes, lengths=lengths, progress=advance)
    worst: dict[tuple[str, str, str], float] = {}
    for outcome in outcomes:
        key = outcome.function, outcome.isa, outcome.dtype
        worst[key] = max(outcome.ulps, worst.get(key, 0.0))
    isas = _check.instruction_sets()
    rows = [
        [
            function,
            *("  ".join(f"{worst[function, isa, dtype]:.2f}" for dtype in dtypes) for isa in isas),
            f"{_check.BOUND:.0f}",
        ]
        for function in _check.FUNCTIONS
    ]
    title = f"Largest errors, {' and '.join(dtypes)}, in ULP (gradients: ULP of their largest term)"
    screen.table(title, ["function", *isas, "bound"], rows)
    families = f"{len(_check.FAMILIES)} kinds of logits, rows of {min(lengths)} to {max(lengths):,}"
    screen.line(f"{len(outcomes):,} comparisons with long double: {families}")
    if len(dtypes) < 2:
        screen.line("Nothing here is wide enough to check float64 against")
    different = len(_check.differing(outcomes))
    screen.line(f"Same bits on every instruction set: {'no, ' + str(different) + ' differ' if different else 'yes'}")
    return outcomes


def compare_speeds(screen: PlainScreen, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time every contender on every shape; a record for each."""
    names = (_peers.OURS, _peers.BASELINE, *options.peers)
    adapters, missing = _peers.load(names, fsm.get_num_threads())
    screen.line("\nContenders, taking turns:")
    for name, version in _peers.versions(tuple(adapters)).items():
        screen.line(f"  {name} {version}")
    for name, reason in missing.items():
        screen.line(f"  without {name}, which {reason}")
    screen.line("Shapes:")
    for name in options.shapes:
        shape, axis = _timing.SHAPES[name]
        screen.line(f"  {name} {shape}, axis {axis}")
    records: list[dict[str, Any]] = []
    cells = [(f, d, s) for d in options.dtypes for f in options.functions for s in options.shapes]
    with screen.progress("timing", len(cells)) as advance:
        for function, dtype, shape_name in cells:
            shape, axis = _timing.SHAPES[shape_name]
            work = _timing.make_work(function, shape, axis, dtype)
            calls, wrong = _peers.prepare_checked(adapters, work)
            times = _timing.measure(calls, options.seconds)
            cell = {
                "function": function,
                "dtype": dtype,
                "shape_name": shape_name,
                "shape": shape,
                "axis": axis,
            }
            records += [{**cell, "contender": name, "wrong": reason} for name, reason in wrong.items()]
            for name, taken in times.items():
                ratio = taken.best / times[_peers.OURS].best if _peers.OURS in times else None
                records.append({**cell, "contender": name, **asdict(taken), "ratio": ratio})
            advance()
    for dtype in options.dtypes:
        for function in options.functions:
            show_times(
                screen,
                options.shapes,
                [r for r in records if (r["function"], r["dtype"]) == (function, dtype)],
            )
    for record in records:
        if "wrong" in record:
            screen.line(f"{record['contender']}, {record['function']}, {record['shape_name']}: {record['wrong']}")
    spread = median(record["median"] / record["best"] for record in records if "best" in record)
    screen.line(f"\nMedian times are {spread:.2f} times the best ones (on a quiet machine below 1.2)")
    return records


def show_times(screen: PlainScreen, shapes: list[str], records: list[dict[str, Any]]) -> None:
    """One function's table: shapes side by side, contenders one below the other."""
    cells = {(record["contender"], record["shape_name"]): record for record in records}
    contenders = [name for name in _peers.CONTENDERS if any(name == contender for contender, _ in cells)]
    rows = [[name, *(time_cell(cells.get((name, shape))) for shape in shapes)] for name in contenders]
    function, dtype = records[0]["function"], records[0]["dtype"]
    screen.table(f"{function}, {dtype}: best time, and how many times fastsoftmax's that is", ["", *shapes], rows)


def time_cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    if "wrong" in record:
        return "wrong"
    ratio, ours = record["ratio"], record["contender"] == _peers.OURS
    beside = "" if ours or ratio is None else f"{three_digits(ratio)}x"
    return f"{readable_time(record['best'])} {beside:>5}"


def readable_time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{three_digits(seconds / size)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """A panel for each function and dtype: bars of how many times fastsoftmax's time each contender takes."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((record["function"], record["dtype"]) for record in records))
    shapes = list(dict.fromkeys(record["shape_name"] for record in records))
    contenders = [name for name in _peers.CONTENDERS if name != _peers.OURS]
    figure = Figure(figsize=(12, 0.5 + 0.62 * len(shapes) * ((len(panels) + 1) // 2) + 1), layout="constrained")
    axes = figure.subplots((len(panels) + 1) // 2, 2 if len(panels) > 1 else 1, squeeze=False).ravel()
    for panel, (function, dtype) in zip(axes, panels, strict=False):
        ratios = {
            (record["contender"], record["shape_name"]): record["ratio"]
            for record in records
            if (record["function"], record["dtype"]) == (function, dtype) and record.get("ratio")
        }
        present = [name for name in contenders if any(name == contender for contender, _ in ratios)]
        height = 0.85 / max(1, len(present))
        for place, name in enumerate(present):
            here = [(at, ratios[name, shape]) for at, shape in enumerate(shapes) if (name, shape) in ratios]
            bars = panel.barh(
                [at + (place - (len(present) - 1) / 2) * height for at, _ in here],
                [ratio - 1 for _, ratio in here],
                height,
                left=1,
                color=f"C{contenders.index(name)}",
                label=name,
            )
            panel.bar_label(bars, [three_digits(ratio) for _, ratio in here], fontsize=6, padding=2)
        panel.axvline(1, color="black", linewidth=1)
        panel.set(xscale="log", yticks=range(len(shapes)), yticklabels=shapes, title=f"{function}, {dtype}")
        panel.margins(x=0.15)
        panel.invert_yaxis()
        panel.set_xticks([1, 10, 100], ["1x", "10x", "100x"])
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    figure.suptitle("Time of one call, as a multiple of fastsoftmax's (longer bars: slower)")
    figure.savefig(path, dpi=130)


def main() -> int:
    """Run the main job; the process's exit status."""
    started = time.perf_counter()
    options = parse_arguments()
    screen = PlainScreen() if options.plain or Console is None else RichScreen()
    config = show_configuration(screen)
    outcomes = [] if options.no_check else check_results(screen)
    records = compare_speeds(screen, options)
    if options.json:
        checked = [asdict(outcome) for outcome in outcomes]
        options.json.write_text(json.dumps({"configuration": config, "check": checked, "times": records}, indent=1))
        screen.line(f"Written: {options.json}")
    if options.plot:
        try:
            draw(records, options.plot)
            screen.line(f"Drawn: {options.plot}")
        except ImportError:
            screen.line("No plot: it needs Matplotlib (pip install matplotlib)")
    inexact = [outcome for outcome in outcomes if not outcome.within_bound]
    different = _check.differing(outcomes)
    for outcome in inexact:
        screen.line(f"Out of bounds: {outcome}")
    for outcome in different:
        screen.line(f"Other bits than on {_check.instruction_sets()[0]}: {outcome}")
    ours_wrong = any("wrong" in record and record["contender"] == _peers.OURS for record in records)
    failed = bool(inexact or different or ours_wrong)
    screen.line(f"{'FAILED' if failed else 'All good'} after {time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
