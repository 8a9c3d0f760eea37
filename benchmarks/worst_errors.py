"""Searches for the largest errors of float32 rows, among far more of them than the accuracy report has.

    python benchmarks/worst_errors.py --seconds 60 --seed 1

Exact values are float64's, whose own error is some 2**-28 of a float32 ULP. Rows are made where errors
are largest: few elements, one of which gives most of the sum or hardly more than the others.
"""

import argparse
import time

import numpy as np

import fastsoftmax as fsm
from fastsoftmax._check import ExactRows, ulp

LENGTHS = (2, 3, 4, 5, 8, 16, 17, 100, 130)
ELEMENTS = 1_000_000


def logits(rng: np.random.Generator, n: int) -> np.ndarray:
    """Rows of one of four kinds: normal; below 0 beside a 0; nearly equal beside a 0; a group far below one."""
    rows = ELEMENTS // n
    kind = rng.integers(4)
    if kind == 0:
        return rng.normal(0, rng.choice([0.1, 1, 4, 10]), (rows, n)).astype(np.float32)
    first = rng.uniform(-2, 2, (rows, 1)) if kind == 3 else np.zeros((rows, 1))
    if kind == 1:
        others = -rng.uniform(0, 20, (rows, n - 1))
    elif kind == 2:
        others = -rng.uniform(2, 8, (rows, 1)) + rng.normal(0, 0.001, (rows, n - 1))
    else:
        others = -rng.uniform(1, 6, (rows, 1)) - rng.uniform(0, 0.7, (rows, n - 1))
    return np.concatenate([first, others], axis=1).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    worst = {"softmax": (0.0, 0), "log_softmax": (0.0, 0)}
    rows, end = 0, time.perf_counter() + options.seconds
    while time.perf_counter() < end:
        x = logits(rng, int(rng.choice(LENGTHS)))
        rows += len(x)
        exact_rows = ExactRows(x, np.float64)
        for name in worst:
            exact = getattr(exact_rows, name)
            error = np.abs(getattr(fsm, name)(x) - exact) / ulp(exact, x.dtype)
            worst[name] = max(worst[name], (float(error.max()), x.shape[1]))
    for name, (error, n) in worst.items():
        print(f"{name}: {error:.2f} ULP in a row of {n}, of {rows:,} rows")


if __name__ == "__main__":
    main()
