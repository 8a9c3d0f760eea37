"""Throughput against row length: fastsoftmax, every peer and the copy limit.

    python benchmarks/sweep.py --json sweep.json --plot sweep.png

A panel for each dtype and layout (rows: the last axis; columns: the first). Every point is the
same number of elements, so the length alone changes; results go to a given output where a library
can write there. The dotted line is a copy of the same array by as many threads.
"""

import argparse
import json
from pathlib import Path

from cases import IN_CACHE, Case
from limits import copy_call, exponentials_a_second

import fastsoftmax as fsm
from fastsoftmax._peers import CONTENDERS, OURS, load, prepare_checked, versions
from fastsoftmax._timing import FUNCTIONS, describe_machine, measure

COPY = "copy"


def sweep(function: str, elements: int, seconds: float) -> dict:
    """Elements a second of each contender at each length, with what they depend on."""
    adapters, missing = load(CONTENDERS, fsm.get_num_threads())
    points = []
    for dtype in ("float32", "float64"):
        for layout, axis in (("rows", -1), ("columns", 0)):
            n = 2
            while n <= elements:
                shape = (elements // n, n) if layout == "rows" else (n, elements // n)
                work = Case(function, shape, axis, dtype).make()
                calls, wrong = prepare_checked(adapters, work, reuse_output=True)
                times = measure({**calls, COPY: copy_call(work.logits)}, seconds)
                rates = {name: elements / taken.best for name, taken in times.items()}
                points.append({"dtype": dtype, "layout": layout, "n": n, "rates": rates, "wrong": wrong})
                print(f"{dtype} {layout} of {n}: {rates[OURS] / 1e9:.2f} elements a nanosecond", flush=True)
                n *= 2
    return {
        "configuration": {**fsm.get_config(), **describe_machine()},
        "versions": versions(tuple(adapters)),
        "missing": missing,
        "function": function,
        "elements": elements,
        "exponentials_a_second": {dtype: exponentials_a_second(dtype) for dtype in ("float32", "float64")},
        "points": points,
    }


def draw(result: dict, path: Path) -> None:
    """Four panels, logarithmic both ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for row, dtype in zip(axes, ("float32", "float64"), strict=True):
        for axis, layout in zip(row, ("rows", "columns"), strict=True):
            points = [p for p in result["points"] if (p["dtype"], p["layout"]) == (dtype, layout)]
            for name in [*CONTENDERS, COPY]:
                line = [(p["n"], p["rates"][name] / 1e9) for p in points if name in p["rates"]]
                if not line:
                    continue
                style = {"color": "black", "linestyle": ":"} if name == COPY else {}
                width = 2.8 if name == OURS else 1.2
                axis.plot(*zip(*line, strict=True), label=name, linewidth=width, marker=".", **style)
            bound = result["exponentials_a_second"][dtype] / 1e9
            axis.axhline(bound, color="grey", linestyle="--", linewidth=1, label="exponentials in registers")
            axis.set(xscale="log", yscale="log", title=f"{dtype}, {layout}")
            axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("elements a nanosecond")
    for axis in axes[1]:
        axis.set_xlabel("row length")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    config = result["configuration"]
    figure.suptitle(
        f"{result['function']} of {result['elements']:,} elements: {config['cpu']}, {config['isa']}, "
        f"{config['threads']} threads"
    )
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--function", choices=FUNCTIONS, default="softmax")
    parser.add_argument("--elements", type=int, default=2 * IN_CACHE, help="in every array (default 1,048,576)")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each contender of a point (default 0.2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every rate to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves to FILE")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="draw an earlier run instead of measuring")
    options = parser.parse_args()
    if options.from_json:
        result = json.loads(options.from_json.read_text())
    else:
        result = sweep(options.function, options.elements, options.seconds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if options.plot:
        draw(result, options.plot)


if __name__ == "__main__":
    main()
