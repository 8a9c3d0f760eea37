"""Each of the goals in docs/performance.md: what is to be reached, what is reached, and by which peer.

    python benchmarks/compare.py --json compare.json

Peers are the best of those installed, each writing into a given output where it can. With AVX2
beside the best instruction set (--isa avx2) the same runs again in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from cases import IN_CACHE, LENGTHS, OUT_OF_CACHE, Case, column_cases, row_cases, very_negative
from limits import copy_call

import fastsoftmax as fsm
from fastsoftmax._peers import BASELINE, CONTENDERS, OURS, PEERS, load, prepare_checked, versions
from fastsoftmax._timing import LOSS, Call, describe_machine, measure

ELEMENTWISE = ("softmax", "log_softmax")
SHORT_ROWS = 100_000


@dataclass(frozen=True)
class PeerRow:
    """The best peer takes at least `target` times as long as fastsoftmax, in every case."""

    work: str
    target: float
    cases: list[Case]


@dataclass(frozen=True)
class OwnRow:
    """The first of two calls takes at most `target` times as long as the second, in every pair."""

    work: str
    target: float
    pairs: Callable[[], Iterator[tuple[str, Call, Call]]]


def into_out(x: np.ndarray, axis: int = -1) -> Call:
    out = np.zeros_like(x)
    return lambda: fsm.softmax(x, axis, out=out)


def logits(*shape: int, dtype: str = "float32") -> np.ndarray:
    return Case("softmax", shape, dtype=dtype).make().logits


def copy_pairs():
    for dtype, rows in (("float32", 16384), ("float64", 8192)):
        x = logits(rows, 1024, dtype=dtype)
        yield f"{dtype} {rows}x1024 / copy", into_out(x), copy_call(x)


def small_pairs():
    for dtype in ("float32", "float64"):
        for shape in ((10,), (8, 100)):
            x = logits(*shape, dtype=dtype)
            yield f"{dtype} {shape} / np.exp", lambda x=x: fsm.softmax(x), lambda x=x: np.exp(x)


def layout_pairs():
    for n in (10, 100, 1000):
        rows = IN_CACHE // n
        wide = logits(rows, n + n // 2)
        strided, plain = wide[:, :n], np.ascontiguousarray(wide[:, :n])
        fortran = np.asfortranarray(plain)
        yield f"strided {rows}x{n} / contiguous", into_out(strided), into_out(plain)
        yield f"Fortran {rows}x{n} / contiguous", into_out(fortran), into_out(plain)


def negative_pairs():
    for dtype in ("float32", "float64"):
        for n in (10, 1000):
            kinds = very_negative((IN_CACHE // n, n), dtype)
            for kind in list(kinds)[1:]:
                yield f"{dtype} n={n} {kind}", into_out(kinds[kind]), into_out(kinds["ordinary"])


def thread_pairs():
    for function, shape in (("softmax", (512, 1000)), ("softmax", (52_000, 10)), ("softmax", (4, 131_072))):
        call = into_out(logits(*shape))

        def alone(call=call):
            with fsm.num_threads(1):
                call()

        yield f"{function} {shape}: two threads / one", call, alone


def flatness_pairs():
    """An element's cost at each length beside that at half of it: calls of the same total size."""
    calls = [(n, into_out(logits(max(1, 2**21 // n), n))) for n in (2**k for k in range(4, 22))]
    for (n, call), (_, before) in zip(calls[1:], calls, strict=False):
        yield f"rows of {n} / {n // 2}", call, before


def growth_pairs():
    """As rows multiply: twice the rows, half as often."""
    for n in (10, 1000):
        calls = [(rows, into_out(logits(rows, n))) for rows in (2**k for k in range(6, 22 - n.bit_length()))]
        for (rows, call), (_, before) in zip(calls[1:], calls, strict=False):
            yield f"{rows} rows of {n} / twice {rows // 2}", call, lambda before=before: (before(), before())


PEER_ROWS = [
    PeerRow("float32 rows, in cache", 1.7, row_cases(ELEMENTWISE, LENGTHS)),
    PeerRow("float32 one row of a million", 1.7, row_cases(ELEMENTWISE, (10**6,))),
    PeerRow("float32 rows, out of cache", 1.5, row_cases(ELEMENTWISE, (1000, 200_000), elements=OUT_OF_CACHE)),
    PeerRow("float64 rows, in cache", 2, row_cases(ELEMENTWISE, LENGTHS, "float64", IN_CACHE // 2)),
    PeerRow("float64 one row of a million", 2, row_cases(ELEMENTWISE, (10**6,), "float64")),
    PeerRow(
        "float64 rows, out of cache",
        1.5,
        row_cases(ELEMENTWISE, (1000, 200_000), "float64", OUT_OF_CACHE // 2),
    ),
    PeerRow("float32 n = 2, 3", 6, [Case(f, (SHORT_ROWS, n)) for f in ELEMENTWISE for n in (2, 3)]),
    PeerRow("float32 n = 5 to 16", 4, [Case(f, (SHORT_ROWS, n)) for f in ELEMENTWISE for n in (5, 8, 10, 16)]),
    PeerRow(
        "float64 n = 5 to 16",
        3,
        [Case(f, (SHORT_ROWS, n), dtype="float64") for f in ELEMENTWISE for n in (5, 8, 10, 16)],
    ),
    PeerRow("float32 n = 17 to 32", 2.5, [Case(f, (20_000, n)) for f in ELEMENTWISE for n in (17, 24, 32)]),
    PeerRow("float32 n = 64", 1.5, [Case(f, (8000, 64)) for f in ELEMENTWISE]),
    PeerRow("float32 columns and middle axes", 2, column_cases(ELEMENTWISE)),
    PeerRow("float64 columns and middle axes", 2, column_cases(("softmax",), "float64")),
    PeerRow("loss and gradient, 300 to 32,000 classes", 4, row_cases((LOSS,), (300, 1000, 10_000, 32_000))),
    PeerRow("loss and gradient, 150,000 classes", 3, row_cases((LOSS,), (150_000,))),
    PeerRow("loss and gradient, 10 classes", 8, [Case(LOSS, (rows, 10)) for rows in (1797, SHORT_ROWS)]),
    PeerRow("logsumexp, rows", 2, row_cases(("logsumexp",), LENGTHS)),
    PeerRow("logsumexp, columns", 2, column_cases(("logsumexp",))),
    PeerRow("logsumexp, 8 classes", 4, [Case("logsumexp", (SHORT_ROWS, 8))]),
]
OWN_ROWS = [
    OwnRow("64 MB into out / two-thread streaming copy", 1.25, copy_pairs),
    OwnRow("softmax(x) / np.exp(x), 10 and 8 x 100", 1.0, small_pairs),
    OwnRow("strided rows, Fortran order / contiguous", 1.3, layout_pairs),
    OwnRow("very negative logits / ordinary ones", 1.2, negative_pairs),
    OwnRow("an element's cost as rows grow, 16 to 2,000,000", 1.5, flatness_pairs),
    OwnRow("an element's cost as rows multiply", 1.5, growth_pairs),
    OwnRow("two threads / one thread", 1 / 1.8, thread_pairs),
]


def measure_peers(row: PeerRow, adapters, seconds: float) -> dict:
    """Ratio of the best peer's time to ours for each case; the lowest is what is reached."""
    details = []
    for case in row.cases:
        calls, wrong = prepare_checked(adapters, case.make(), reuse_output=True)
        times = measure(calls, seconds)
        peers = {name: taken.best for name, taken in times.items() if name not in (OURS, BASELINE)}
        best = min(peers, key=peers.__getitem__, default=BASELINE)
        detail = {"case": str(case), "best_peer": best, "ratio": times[best].best / times[OURS].best}
        details.append({**detail, "times": {n: asdict(t) for n, t in times.items()}, "wrong": wrong})
        show_detail(f"{detail['case']}: {detail['ratio']:.2f}x ({best})")
    worst = min(details, key=lambda detail: detail["ratio"])
    return {
        "reached": worst["ratio"],
        "good": worst["ratio"] >= row.target,
        "worst": worst,
        "details": details,
    }


def measure_own(row: OwnRow, seconds: float) -> dict:
    """Ratio of the first call's time to the second's for each pair; the highest is what is reached."""
    details = []
    for name, call, beside in row.pairs():
        times = measure({"this": call, "that": beside}, seconds)
        ratio = times["this"].best / times["that"].best
        details.append({"case": name, "ratio": ratio, "times": {n: asdict(t) for n, t in times.items()}})
        show_detail(f"{name}: {ratio:.2f}")
    worst = max(details, key=lambda detail: detail["ratio"])
    return {
        "reached": worst["ratio"],
        "good": worst["ratio"] <= row.target,
        "worst": worst,
        "details": details,
    }


def show_detail(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)


def run(only: str, seconds: float) -> dict:
    """All rows whose name holds `only`, on the instruction set in use."""
    adapters, missing = load(CONTENDERS, fsm.get_num_threads())
    result = {
        "configuration": {**fsm.get_config(), **describe_machine()},
        "versions": versions(tuple(adapters)),
        "missing": missing,
        "rows": [],
    }
    for row in [*PEER_ROWS, *OWN_ROWS]:
        if only not in row.work:
            continue
        show_detail(f"[{row.work}]")
        compares_peers = isinstance(row, PeerRow)
        if compares_peers and not any(name in adapters for name in PEERS):
            show_detail("no peer is installed")
            continue
        measured = measure_peers(row, adapters, seconds) if compares_peers else measure_own(row, seconds)
        sense = "at least" if compares_peers else "at most"
        result["rows"].append({"work": row.work, "sense": sense, "target": row.target, **measured})
    return result


def run_on(isa: str, only: str, seconds: float) -> dict:
    """The same in a process of its own, whose kernels are chosen at import."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [
            sys.executable,
            __file__,
            "--json",
            path,
            "--seconds",
            str(seconds),
            "--only",
            only,
            "--quiet",
        ]
        subprocess.run(command, env={**os.environ, "FASTSOFTMAX_ISA": isa}, check=True)
        return json.loads(path.read_text())["runs"][0]


def show(runs: list[dict]) -> None:
    """The table as Markdown: a pair of columns for each instruction set."""
    isas = [run["configuration"]["isa"] for run in runs]
    print("| work | to reach |" + "".join(f" {isa} | worst case |" for isa in isas))
    print("| --- | --- |" + " --- | --- |" * len(isas))
    for rows in zip(*(run["rows"] for run in runs), strict=True):
        cells = [rows[0]["work"], f"{rows[0]['sense']} {rows[0]['target']:.3g}"]
        for row in rows:
            peer = row["worst"].get("best_peer")
            cells.append(f"{row['reached']:.2f}" + ("" if row["good"] else " (missed)"))
            cells.append(row["worst"]["case"] + (f", {peer}" if peer else ""))
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time to FILE")
    parser.add_argument("--isa", nargs="*", default=[], help="instruction sets beside the best one, such as avx2")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds TEXT")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each contender of a case (default 0.3)")
    parser.add_argument("--quiet", action="store_true", help="print no table")
    options = parser.parse_args()
    runs = [run(options.only, options.seconds)]
    runs += [run_on(isa, options.only, options.seconds) for isa in options.isa]
    if options.json:
        options.json.write_text(json.dumps({"runs": runs}, indent=1))
    if not options.quiet:
        show(runs)


if __name__ == "__main__":
    main()
