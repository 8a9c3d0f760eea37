"""Worst errors in ULP: ours on every instruction set, and the peers', on every kind of logits.

    python benchmarks/accuracy.py --json accuracy.json > accuracy.md

Exact values come from long double (fastsoftmax/_check.py says how). Each row that gave one of
our worst errors is computed again by mpmath with 60 digits; the table shows that figure. Errors
of gradients are in ULP of the largest term; peers have one for the loss, the others are ours alone.
"""

import argparse
import datetime
import json
from pathlib import Path

import mpmath
import numpy as np

import fastsoftmax as fsm
from fastsoftmax import _check, _core
from fastsoftmax._check import FAMILIES, ExactRows, Inputs, instruction_sets, largest_error, make_inputs, ulp
from fastsoftmax._peers import CONTENDERS, OURS, _arrays, load, versions
from fastsoftmax._timing import LOSS, Work, describe_machine

LENGTHS = (2, 10, 100, 1000, 10_000, 1_000_000)
GRADIENT = "gradient of the loss"
OURS_ALONE = ("softmax_cross_entropy_grad_hess", "softmax_vjp", "log_softmax_vjp", "softmax_jacobian")
FUNCTIONS = ("softmax", "log_softmax", "logsumexp", LOSS, GRADIENT, *OURS_ALONE)
#: mpmath takes 20 us for an exponential.
LONGEST_CONFIRMED = 10_000


def exact_values(function: str, given: Inputs):
    """What is wanted and its unit, for every element or row."""
    exact, dtype = given.exact, given.logits.dtype
    if function == "logsumexp":
        return exact.logsumexp, exact.logsumexp_unit
    if function == GRADIENT:
        return exact.softmax - given.one_hot, ulp(np.maximum(exact.softmax, given.one_hot), dtype)
    if function == LOSS:
        want = -np.take_along_axis(exact.log_softmax, given.labels[:, None], -1)[:, 0]
    else:
        want = getattr(exact, function)
    return want, ulp(want, dtype)


def results(adapter, function: str, given: Inputs) -> np.ndarray | None:
    """The contender's values, of the shape of `exact_values`; None where it has no such function."""
    if function not in (LOSS, GRADIENT):
        call = adapter.prepare(Work(function, given.logits, -1, given.labels), False)
        return None if call is None else _arrays(call())[0]
    parts = []
    for row, label in zip(given.logits, given.labels, strict=True):  # the mean over one row
        call = adapter.prepare(Work(LOSS, row[None], -1, np.array([label])), False)
        if call is None:
            return None
        loss, gradient = _arrays(call())
        parts.append(loss[()] if function == LOSS else gradient[0])
    return np.array(parts)


def first_rows(given: Inputs, count: int) -> Inputs:
    """Few rows of it: those whose label is the largest logit, and others."""
    chosen = np.unique(np.linspace(0, len(given.logits) - 1, count).astype(int))
    logits = given.logits[chosen]
    return Inputs(given.family, logits, given.labels[chosen], given.upstream[chosen], ExactRows(logits))


def confirmed_error(function: str, given: Inputs, got: np.ndarray, row: int) -> float | None:
    """The largest error of one row by mpmath, in ULP."""
    logits = given.logits[row]
    if logits.size > LONGEST_CONFIRMED:
        return None
    want, unit = exact_values(function, given)
    with np.errstate(invalid="ignore"):
        at = int(np.nanargmax(np.atleast_1d(np.abs(got[row] - want[row]) / unit[row])))
    value, spacing = np.atleast_1d(got[row])[at], np.atleast_1d(unit[row])[at]
    with mpmath.workdps(60):
        values = [mpmath.mpf(float(x)) for x in logits]
        top = max(values)
        # Twice as many digits as the smallest part of the sum can be away from its largest.
        rest = mpmath.fsum(mpmath.exp(x - top) for x in values) - 1
        log_sum = top + mpmath.log1p(rest)
        of = {
            "softmax": lambda: mpmath.exp(values[at] - top) / (1 + rest),
            "log_softmax": lambda: values[at] - top - mpmath.log1p(rest),
            "logsumexp": lambda: log_sum,
            GRADIENT: lambda: mpmath.exp(values[at] - top) / (1 + rest) - int(at == given.labels[row]),
            LOSS: lambda: mpmath.log1p(rest) - (values[given.labels[row]] - top),
        }
        error = abs(mpmath.mpf(float(value)) - of[function]()) / mpmath.mpf(float(spacing))
        return float(error) if mpmath.isfinite(error) else None


def measure_ours(record: dict, function: str, given: Inputs) -> None:
    """A function that no peer has, on every instruction set."""
    for isa in instruction_sets():
        _core.choose_instruction_set(isa)
        outcome = _check.evaluate(function, isa, given)
        name = f"{OURS} {isa}"
        record["errors"][name] = max(outcome.ulps, record["errors"].get(name, 0))
        if record["worst"] is None or outcome.ulps > record["worst"]["ulps"]:
            record["worst"] = {"n": outcome.n, "row": outcome.row, "ulps": outcome.ulps, "mpmath": None}


def measure_family(function: str, dtype: str, family: str, adapters, lengths, elements: int) -> dict:
    """Each contender's worst error over all lengths; for ours the row it came from."""
    record = {"function": function, "dtype": dtype, "family": family, "errors": {}, "worst": None}
    for n in lengths:
        given = make_inputs(family, max(1, elements // n), n, np.dtype(dtype))
        if function in OURS_ALONE:
            measure_ours(record, function, given)
            continue
        if function in (LOSS, GRADIENT):
            given = first_rows(given, 4)
        want, unit = exact_values(function, given)

        def judge(name, adapter, given=given, want=want, unit=unit):
            got = results(adapter, function, given)
            if got is None:
                return None
            ulps, row = largest_error(got, want, unit, given.logits.dtype)
            record["errors"][name] = max(ulps, record["errors"].get(name, 0))
            return ulps, row, got

        for isa in instruction_sets():
            _core.choose_instruction_set(isa)
            ulps, row, got = judge(f"{OURS} {isa}", adapters[OURS])
            if record["worst"] is None or ulps > record["worst"]["ulps"]:
                confirmed = confirmed_error(function, given, got, row)
                record["worst"] = {"n": n, "row": row, "ulps": ulps, "mpmath": confirmed}
        for name, adapter in adapters.items():
            if name != OURS:
                judge(name, adapter)
    return record


def show(records: list[dict], contenders: list[str]) -> None:
    """The table as Markdown."""
    print(f"| function | dtype | logits | {' | '.join(contenders)} | our worst row | by mpmath |")
    print("| --- " * (len(contenders) + 5) + "|")
    for record in records:
        errors = [record["errors"].get(name) for name in contenders]
        cells = ["-" if error is None else f"{error:.3g}" for error in errors]
        worst = record["worst"]
        confirmed = "-" if worst["mpmath"] is None else f"{worst['mpmath']:.3g}"
        place = f"n = {worst['n']}, row {worst['row']}"
        name = [record["function"].replace(LOSS, "loss"), record["dtype"], record["family"]]
        print(f"| {' | '.join([*name, *cells, place, confirmed])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--functions", nargs="+", choices=FUNCTIONS, default=FUNCTIONS)
    add("--dtypes", nargs="+", choices=("float32", "float64"), default=("float32", "float64"))
    add("--families", nargs="+", choices=FAMILIES, default=tuple(FAMILIES), metavar="FAMILY")
    add("--lengths", nargs="+", type=int, default=LENGTHS, help="of the rows")
    add("--elements", type=int, default=20_000, help="in each matrix, one row at least (default 20,000)")
    add("--json", type=Path, metavar="FILE", help="write every error to FILE")
    options = parser.parse_args()
    adapters, missing = load(CONTENDERS, fsm.get_num_threads())
    chosen, records = fsm.get_config()["isa"], []
    try:
        for function in options.functions:
            for dtype in options.dtypes:
                for family in options.families:
                    arguments = adapters, options.lengths, options.elements
                    records.append(measure_family(function, dtype, family, *arguments))
    finally:
        _core.choose_instruction_set(chosen)
    ours = [f"{OURS} {isa}" for isa in instruction_sets()]
    configuration = {**fsm.get_config(), **describe_machine(), "date": str(datetime.date.today())}
    found = {"configuration": configuration, "versions": versions(tuple(adapters)), "missing": missing}
    for title, entries in found.items():
        print(f"{title}: {', '.join(f'{name} {value}' for name, value in entries.items()) or 'none'}\n")
    show(records, ours + [name for name in adapters if name != OURS])
    if options.json:
        options.json.write_text(json.dumps({**found, "records": records}, indent=1))


if __name__ == "__main__":
    main()
