"""Every function, on every instruction set of this CPU, against exact values.

Exact here means computed in long double from the very same inputs. Errors are in ULP, units
in the last place of the exact value: the spacing of floating-point numbers there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np

import fastsoftmax as fsm
from fastsoftmax import _core, special

#: The largest error allowed, in the units of each function below.
BOUND = 2.0


#: An array of long double, whose type NumPy's stubs lose in arithmetic.
Wide = Any


def ulp(values: Wide, dtype: Any) -> Wide:
    """The spacing of `dtype`'s numbers at each value, the subnormals' where it is among them."""
    information = np.finfo(dtype)
    exponent = np.frexp(np.where(np.isfinite(values), values, 0))[1] - information.nmant - 1
    return np.ldexp(np.longdouble(1), np.maximum(exponent, information.minexp - information.nmant))


def rounded(values: Wide, dtype: Any) -> np.ndarray:
    """Exact values in `dtype`, infinite where it cannot hold them."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype)


class ExactRows:
    """The exact results of a matrix whose rows are the rows of a softmax.

    Where an element's distance from the maximum does not fit a long double, the rounding
    error of the subtraction is carried along. Where nothing is wider than float64 (Windows,
    macOS on ARM), only float32 can be checked; for that float64 will do, and is faster.
    """

    def __init__(self, logits: np.ndarray, wider: Any = np.longdouble) -> None:
        self.logits, self.dtype = logits, logits.dtype
        wide = logits.astype(wider)
        top = wide.argmax(-1, keepdims=True)
        self.maximum = np.take_along_axis(wide, top, -1)
        self.shifted = wide - self.maximum
        # The error of a difference (Knuth, TwoSum), exact.
        back = self.shifted - wide
        self.shift_error = (wide - (self.shifted - back)) - (self.maximum + back)
        self.shift_error[~np.isfinite(self.shift_error)] = 0
        self.exponentials = np.exp(self.shifted) * (1 + self.shift_error)
        # One maximum stays out of the sum: its 1 would hide the others.
        rest = self.exponentials.copy()
        np.put_along_axis(rest, top, 0, -1)
        self.rest = rest.sum(-1, keepdims=True)

    @cached_property
    def softmax(self) -> Wide:
        return self.exponentials / (1 + self.rest)

    @cached_property
    def log_softmax(self) -> Wide:
        return (self.shifted - np.log1p(self.rest)) + self.shift_error

    @cached_property
    def logsumexp(self) -> Wide:
        return (self.maximum + np.log1p(self.rest))[..., 0]

    @cached_property
    def logsumexp_unit(self) -> Wide:
        """ULP, but near 0 by cancellation half an epsilon of the maximum (or of 1)."""
        size = np.maximum(1, np.abs(self.maximum[..., 0]))
        return np.maximum(ulp(self.logsumexp, self.dtype), np.finfo(self.dtype).eps / 2 * size)


@dataclass(frozen=True)
class Inputs:
    """One matrix of logits and what the functions take besides."""

    family: str
    logits: np.ndarray
    labels: np.ndarray
    upstream: np.ndarray
    exact: ExactRows

    @cached_property
    def one_hot(self) -> Wide:
        return np.asarray(np.arange(self.logits.shape[1]) == self.labels[:, None], np.longdouble)

    @cached_property
    def probabilities(self) -> np.ndarray:
        return rounded(self.exact.softmax, self.logits.dtype)


#: What is got, what is wanted, and the unit its error is counted in.
Comparison = tuple[Any, Wide, Wide]


def _softmax(given: Inputs, module: Any = fsm) -> Iterator[Comparison]:
    want = given.exact.softmax
    yield module.softmax(given.logits, -1), want, ulp(want, given.logits.dtype)


def _log_softmax(given: Inputs, module: Any = fsm) -> Iterator[Comparison]:
    want = given.exact.log_softmax
    yield module.log_softmax(given.logits, -1), want, ulp(want, given.logits.dtype)


def _logsumexp(given: Inputs, module: Any = fsm) -> Iterator[Comparison]:
    yield module.logsumexp(given.logits, -1), given.exact.logsumexp, given.exact.logsumexp_unit


def _loss(given: Inputs) -> tuple[Wide, Wide]:
    want = -np.take_along_axis(given.exact.log_softmax, given.labels[:, None], -1)[:, 0]
    return want, ulp(want, given.logits.dtype)


def _gradient(given: Inputs, rows: int) -> tuple[Wide, Wide]:
    """The gradient's error counts against its larger term, p or the label's 1."""
    larger = np.maximum(given.exact.softmax, given.one_hot)
    return (given.exact.softmax - given.one_hot) / rows, ulp(larger / rows, given.logits.dtype)


def _cross_entropy(given: Inputs) -> Iterator[Comparison]:
    yield fsm.softmax_cross_entropy(given.logits, given.labels, reduction="none"), *_loss(given)


def _cross_entropy_grad(given: Inputs) -> Iterator[Comparison]:
    rows = len(given.logits)
    yield fsm.softmax_cross_entropy_grad(given.logits, given.labels), *_gradient(given, rows)


def _value_and_grad(given: Inputs) -> Iterator[Comparison]:
    losses, gradient = fsm.softmax_cross_entropy_value_and_grad(given.logits, given.labels, reduction="none")
    yield losses, *_loss(given)
    yield gradient, *_gradient(given, 1)


def _grad_hess(given: Inputs) -> Iterator[Comparison]:
    gradient, hessian = fsm.softmax_cross_entropy_grad_hess(given.logits, given.labels)
    p = given.exact.softmax
    yield gradient, *_gradient(given, 1)
    yield hessian, p * (1 - p), ulp(p, given.logits.dtype)


def _selected(given: Inputs) -> Iterator[Comparison]:
    want, unit = _loss(given)
    yield fsm.selected_log_softmax(given.logits, given.labels), -want, unit


def _softmax_vjp(given: Inputs) -> Iterator[Comparison]:
    p, g = given.probabilities, given.upstream
    wide = p.astype(np.longdouble)
    total = (wide * g).sum(-1, keepdims=True)
    largest = np.maximum(np.abs(g - total), np.maximum(np.abs(g), np.abs(wide * g).max(-1, keepdims=True)))
    yield fsm.softmax_vjp(p, g), wide * (g - total), ulp(wide * largest, p.dtype)


def _log_softmax_vjp(given: Inputs) -> Iterator[Comparison]:
    g = given.upstream.astype(np.longdouble)
    log_p = rounded(given.exact.log_softmax, given.logits.dtype)
    p = np.exp(log_p.astype(np.longdouble))
    total = g.sum(-1, keepdims=True)
    want = g - p * total
    sums = p * np.maximum(np.abs(g).max(-1, keepdims=True), np.abs(total))
    largest = np.maximum(np.abs(want), np.maximum(np.abs(g), sums))
    yield fsm.log_softmax_vjp(log_p, given.upstream), want, ulp(largest, log_p.dtype)


def _jacobian(given: Inputs) -> Iterator[Comparison]:
    p = given.probabilities[:, :50]  # squared, the longer rows would fill the memory
    wide = p.astype(np.longdouble)
    diagonal = np.eye(p.shape[1], dtype=bool) * wide[:, :, None]
    products = wide[:, :, None] * wide[:, None, :]
    largest = np.maximum(diagonal, products)
    yield fsm.softmax_jacobian(p), diagonal - products, ulp(largest, p.dtype)


FUNCTIONS: dict[str, Callable[[Inputs], Iterator[Comparison]]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
    "softmax_cross_entropy": _cross_entropy,
    "softmax_cross_entropy_grad": _cross_entropy_grad,
    "softmax_cross_entropy_value_and_grad": _value_and_grad,
    "softmax_cross_entropy_grad_hess": _grad_hess,
    "selected_log_softmax": _selected,
    "softmax_vjp": _softmax_vjp,
    "log_softmax_vjp": _log_softmax_vjp,
    "softmax_jacobian": _jacobian,
    "special.softmax": lambda given: _softmax(given, special),
    "special.log_softmax": lambda given: _log_softmax(given, special),
    "special.logsumexp": lambda given: _logsumexp(given, special),
}


def _bit_patterns(normal: np.ndarray, dtype: Any) -> Any:
    bits = np.random.default_rng(3).integers(0, 256, normal.size * np.dtype(dtype).itemsize, np.uint8)
    values = bits.view(dtype).reshape(normal.shape)
    return np.where(np.isfinite(values), values, 0)


def _dominated(normal: np.ndarray, dtype: Any) -> Any:
    """One element so far above the others that its log-probability comes down to -1e-30."""
    gaps = np.linspace(1, 70, len(normal))
    values = np.asarray(normal / 8)
    values[:, values.shape[1] // 2] += gaps
    return values


def _subnormal_results(normal: np.ndarray, dtype: Any) -> Any:
    """A maximum of 0 and elements whose exponentials straddle the smallest normal number."""
    lowest = np.log(np.finfo(dtype).tiny)
    values = lowest + normal * 4
    values[:, 0] = 0
    return values


def _cancelling(normal: np.ndarray, dtype: Any) -> Any:
    """Rows whose logsumexp is as near 0 as their rounding lets it be."""
    maximum = normal.max(-1, keepdims=True)
    return normal - maximum - np.log(np.exp(normal - maximum).sum(-1, keepdims=True))


def _largest(normal: np.ndarray, dtype: Any) -> Any:
    """The largest number, its neighbour and the smallest: their differences are huge, or exceed the range."""
    largest = np.finfo(dtype).max
    return np.select([normal > 0, normal > -1], [largest, np.nextafter(largest, dtype.type(0))], -largest)


def _repeated(normal: np.ndarray, dtype: Any) -> Any:
    """One to three values over and over and one above them: the roundings of their sums all go one way."""
    rows, n = normal.shape
    few = normal[:, [0, n // 2, n - 1]] * 6
    which = (np.abs(normal) * 1000).astype(int) % (np.arange(rows) % 3 + 1)[:, None]
    values = np.take_along_axis(few, which, -1)
    values[:, n // 3] = values.max(-1) + np.abs(few[:, 1])
    return values


#: Ways to make logits from a matrix of standard normal numbers.
FAMILIES: dict[str, Callable[[Any, Any], Any]] = {
    "deviation 1": lambda normal, dtype: normal,
    "deviation 4": lambda normal, dtype: normal * 4,
    "deviation 20": lambda normal, dtype: normal * 20,
    "uniform [-50, 50] + 30": lambda normal, dtype: normal * 997 % 100 - 20,
    "offset 100": lambda normal, dtype: normal + 100,
    "offset 1000": lambda normal, dtype: normal * 4 + 1000,
    "offset -1000": lambda normal, dtype: normal * 4 - 1000,
    "offset 1e6": lambda normal, dtype: normal * 4 + 1e6,
    "offset largest finite": _largest,
    "one dominating": _dominated,
    "all equal": lambda normal, dtype: np.repeat(normal[:, :1], normal.shape[1], axis=1),
    "repeated values": _repeated,
    "subnormal results": _subnormal_results,
    "logsumexp near 0": _cancelling,
    "random bit patterns": _bit_patterns,
}


def make_inputs(family: str, rows: int, n: int, dtype: Any) -> Inputs:
    """One matrix of a family, the same in every run."""
    rng = np.random.default_rng(n)
    logits = FAMILIES[family](rng.standard_normal((rows, n)), dtype).astype(dtype)
    labels = rng.integers(n, size=rows)
    labels[: rows // 2] = logits[: rows // 2].argmax(-1)  # losses close to 0 among them
    upstream = rng.standard_normal((rows, n)).astype(dtype)
    return Inputs(family, logits, labels, upstream, ExactRows(logits))


@dataclass(frozen=True)
class Outcome:
    """The largest error of one function over one matrix, and the row it came from."""

    function: str
    dtype: str
    isa: str
    family: str
    n: int
    row: int
    ulps: float
    checksum: int  # of the results' bytes: the same for every instruction set

    @property
    def within_bound(self) -> bool:
        return self.ulps <= BOUND


def largest_error(got: Any, want: Wide, unit: Wide, dtype: np.dtype) -> tuple[float, int]:
    """The largest error in units and its row; infinite where no number is right."""
    got = np.asarray(got)
    if got.dtype != dtype or got.shape != want.shape:
        return np.inf, 0
    with np.errstate(invalid="ignore"):
        errors = np.abs(got - want) / unit
    errors[(got == rounded(want, dtype)) & ~np.isfinite(errors)] = 0.5  # both overflow
    errors[np.isnan(errors)] = np.inf
    at = int(errors.argmax())
    return float(errors.flat[at]), at * len(errors) // errors.size


def evaluate(function: str, isa: str, given: Inputs) -> Outcome:
    """One function on the instruction set that is chosen now."""
    dtype = given.logits.dtype
    worst, checksum = (0.0, 0), 0
    for got, want, unit in FUNCTIONS[function](given):
        worst = max(worst, largest_error(got, want, unit, dtype))
        checksum = crc32(np.asarray(got).tobytes(), checksum)
    ulps, row = worst
    return Outcome(function, dtype.name, isa, given.family, given.logits.shape[1], row, ulps, checksum)


def instruction_sets() -> list[str]:
    """Those that this build has and this CPU can run, best first."""
    return [name for name in fsm.get_config()["isas"] if _core.cpu_has(name)]


def checkable(dtype: Any) -> bool:
    """Whether long double is so much wider than `dtype` that it serves as exact."""
    return bool(np.finfo(np.longdouble).nmant >= np.finfo(dtype).nmant + 10)


def check(
    functions: tuple[str, ...] = tuple(FUNCTIONS),
    families: tuple[str, ...] = tuple(FAMILIES),
    dtypes: tuple[str, ...] = ("float32", "float64"),
    lengths: tuple[int, ...] = (2, 10, 33, 1000, 10_000),
    elements: int = 10_000,
    progress: Callable[[], Any] = lambda: None,
) -> list[Outcome]:
    """Compare functions with exact values on every instruction set of this CPU.

    Parameters
    ----------
    functions, families, dtypes, lengths : tuple
        What is checked: names in `FUNCTIONS` and `FAMILIES`, dtypes, and row lengths.
    elements : int
        Size of each matrix, at least one row.
    progress : callable
        Called after each matrix: families times dtypes times lengths.

    Returns
    -------
    list of Outcome
        One for each function, instruction set and matrix.
    """
    chosen, outcomes = fsm.get_config()["isa"], []
    try:
        for dtype in filter(checkable, dtypes):
            for family in families:
                for n in lengths:
                    given = make_inputs(family, max(1, elements // n), n, np.dtype(dtype))
                    for isa in instruction_sets():
                        _core.choose_instruction_set(isa)
                        outcomes += [evaluate(function, isa, given) for function in functions]
                    progress()
    finally:
        _core.choose_instruction_set(chosen)
    return outcomes


def differing(outcomes: list[Outcome]) -> list[Outcome]:
    """Those whose bytes are not what the first instruction set gives."""
    first: dict[tuple[str, str, str, int], int] = {}
    return [
        outcome
        for outcome in outcomes
        if first.setdefault((outcome.function, outcome.dtype, outcome.family, outcome.n), outcome.checksum)
        != outcome.checksum
    ]
