"""Results are within 2 ULP of the exact ones, whatever the row's length and values."""

import functools
import zlib

import numpy as np
import oracle
import pytest

import fastsoftmax as fsm

ULPS = 2  # what docs/accuracy.md promises; nothing below but what follows from it by arithmetic

LENGTHS = range(1, 131)
LONG_LENGTHS = [131, 191, 255, 256, 257, 1000, 1023, 1025, 4099, 10007, 32768, 100003]
VERY_LONG = 1_000_000
ROWS = 6

pytestmark = [
    pytest.mark.usefixtures("isa"),
    pytest.mark.skipif(not oracle.WIDE_ENOUGH, reason="long double is no wider than double here"),
]


# ---- Families of rows -------------------------------------------------------------------


def _offset(offset):
    def family(rng, shape, dtype):
        return rng.normal(offset, 4, shape)

    return family


def _largest_offset(rng, shape, dtype):
    # Numbers around the largest one lie so far apart that all but the maxima vanish.
    steps = rng.integers(0, 3, shape)
    largest = np.full(shape, np.finfo(dtype).max)
    below = np.nextafter(largest, dtype(0))
    return np.choose(steps, [largest, below, -largest])


def _dominating(rng, shape, dtype):
    """One element that takes nearly all: its log-probability is between -1e-30 and -1e-2."""
    n = shape[-1]
    x = rng.normal(0, 1, shape)
    gap = np.linspace(5, 69, shape[0]) + np.log(n)
    x[np.arange(shape[0]), rng.integers(0, n, shape[0])] = gap + 2
    return x


def _subnormal_results(rng, shape, dtype):
    """A maximum, and the rest where probabilities leave the range of normal numbers."""
    lowest = np.log(np.finfo(dtype).smallest_subnormal.astype(oracle.Wide))
    low, high = float(lowest) - 2, float(np.log(np.finfo(dtype).tiny)) + 3
    x = rng.uniform(low, high, shape)
    x[np.arange(shape[0]), rng.integers(0, shape[-1], shape[0])] = 0
    return x + rng.normal(0, 10, (shape[0], 1))


def _repeated(rng, shape, dtype):
    """One to three values over and over, and one above them: the roundings of their sums all go one way."""
    count, n = shape
    few = rng.choice([1, 4, 20, np.log(n) + 1], (count, 1)) * rng.normal(size=(count, 3))
    x = np.take_along_axis(few, rng.integers(0, np.arange(count)[:, None] % 3 + 1, shape), axis=-1)
    x[np.arange(count), rng.integers(0, n, count)] = few.max(axis=-1) + rng.exponential(4, count)
    return x


def _increasing(rng, shape, dtype):
    """Each exponential about as large as the sum of all before it, or larger: the worst order for the sum."""
    count, n = shape
    steps = rng.uniform(np.log(2), 4, (count, 1)) * (np.arange(n) - n) + rng.uniform(0, 0.3, shape)
    return np.maximum(steps, -80) + rng.normal(0, 3, (count, 1))


def _bit_patterns(rng, shape, dtype):
    kind = {np.float32: np.uint32, np.float64: np.uint64}[dtype]
    bits = rng.integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True).view(dtype)
    return np.where(np.isfinite(bits), bits, 0)


def _subnormal_inputs(rng, shape, dtype):
    return rng.integers(-9, 9, shape) * np.finfo(dtype).smallest_subnormal


FAMILIES = {
    "deviation 1": lambda rng, shape, dtype: rng.normal(0, 1, shape),
    "deviation 4": lambda rng, shape, dtype: rng.normal(0, 4, shape),
    "deviation 20": lambda rng, shape, dtype: rng.normal(0, 20, shape),
    "uniform": lambda rng, shape, dtype: rng.uniform(-50, 50, shape) + 30,
    "offset 100": _offset(100),
    "offset 1000": _offset(1000),
    "offset -1000": _offset(-1000),
    "offset 1e6": _offset(1e6),
    "largest finite": _largest_offset,
    "dominating": _dominating,
    "all equal": lambda rng, shape, dtype: np.broadcast_to(rng.normal(0, 30, (shape[0], 1)), shape),
    "repeated values": _repeated,
    "increasing": _increasing,
    "subnormal results": _subnormal_results,
    "subnormal inputs": _subnormal_inputs,
    "bit patterns": _bit_patterns,
}


@functools.cache
def family_rows(family, dtype, n, count=ROWS):
    """Rows of a family, and their exact results."""
    rng = np.random.default_rng([zlib.crc32(family.encode()), n])
    x = np.asarray(FAMILIES[family](rng, (count, n), dtype)).astype(dtype)
    x.flags.writeable = False
    return x, oracle.rows(x)


def worst(errors, n):
    return np.max(errors, initial=0), n


def logsumexp_error(got, exact, x):
    """In ULP; where the sum's logarithm and the maximum cancel, in units of ``ULPS`` of what is promised there."""
    error = oracle.ulp_error(got, exact, x.dtype.type)
    row_max = np.abs(x.max(axis=-1).astype(oracle.Wide))
    promised = np.finfo(x.dtype).eps * np.maximum(1, row_max)
    cancelled = np.abs(exact) < row_max / 2
    return np.where(cancelled, np.minimum(error, ULPS * np.abs(got - exact) / promised), error)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
class TestEveryLength:
    def test_softmax(self, dtype, family):
        found = []
        for n in LENGTHS:
            x, exact = family_rows(family, dtype, n)
            found.append(worst(oracle.ulp_error(fsm.softmax(x), exact.softmax, dtype), n))
        assert max(found) <= (ULPS, np.inf)

    def test_log_softmax(self, dtype, family):
        found = []
        for n in LENGTHS:
            x, exact = family_rows(family, dtype, n)
            found.append(worst(oracle.ulp_error(fsm.log_softmax(x), exact.log_softmax, dtype), n))
        assert max(found) <= (ULPS, np.inf)

    def test_logsumexp(self, dtype, family):
        found = []
        for n in LENGTHS:
            x, exact = family_rows(family, dtype, n)
            found.append(worst(logsumexp_error(fsm.logsumexp(x), exact.logsumexp, x), n))
        assert max(found) <= (ULPS, np.inf)

    def test_loss(self, dtype, family):
        found = []
        for n in LENGTHS:
            x, exact = family_rows(family, dtype, n)
            for labels in (np.argmax(x, axis=-1), np.arange(ROWS) % n):
                loss = -np.take_along_axis(exact.log_softmax, labels[:, np.newaxis], -1)[:, 0]
                for got in (
                    fsm.softmax_cross_entropy(x, labels, reduction="none"),
                    fsm.softmax_cross_entropy_value_and_grad(x, labels, reduction="none")[0],
                ):
                    found.append(worst(oracle.ulp_error(got, loss, dtype), n))
        assert max(found) <= (ULPS, np.inf)

    def test_gradient(self, dtype, family):
        """Within 2 ULP of the larger of the two terms of ``p - y``."""
        found = []
        for n in LENGTHS:
            x, exact = family_rows(family, dtype, n)
            labels = np.arange(ROWS) % n
            y = np.arange(n) == labels[:, np.newaxis]
            got = fsm.softmax_cross_entropy_grad(x, labels, reduction="sum")
            unit = oracle.spacing(np.maximum(exact.softmax, y), dtype)
            found.append(worst(np.abs(got - (exact.softmax - y)) / unit, n))
        assert max(found) <= (ULPS, np.inf)


LONG_FAMILIES = ["deviation 1", "deviation 20", "uniform", "dominating", "all equal", "repeated values", "offset 1e6"]


@pytest.mark.parametrize("family", LONG_FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_long_rows(dtype, family):
    lengths = [*LONG_LENGTHS, VERY_LONG] if family in ("deviation 1", "uniform", "repeated values") else LONG_LENGTHS
    for n in lengths:
        x, exact = family_rows(family, dtype, n, count=2 if n < 20_000 else 1)
        assert oracle.ulp_error(fsm.softmax(x), exact.softmax, dtype).max() <= ULPS, n
        assert oracle.ulp_error(fsm.log_softmax(x), exact.log_softmax, dtype).max() <= ULPS, n
        assert logsumexp_error(fsm.logsumexp(x), exact.logsumexp, x).max() <= ULPS, n
        label = np.argmax(x, axis=-1)
        loss = -np.take_along_axis(exact.log_softmax, label[:, np.newaxis], -1)[:, 0]
        got = fsm.softmax_cross_entropy(x, label, reduction="none")
        assert oracle.ulp_error(got, loss, dtype).max() <= ULPS, n


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 10, 31, 32, 100, 1000, 100_003])
def test_columns(dtype, n):
    """The axis that is not the fastest has kernels of its own."""
    x, exact = family_rows("deviation 4", dtype, n, count=21)
    columns = np.ascontiguousarray(x.T)
    assert oracle.ulp_error(fsm.softmax(columns, axis=0).T, exact.softmax, dtype).max() <= ULPS
    assert oracle.ulp_error(fsm.log_softmax(columns, axis=0).T, exact.log_softmax, dtype).max() <= ULPS
    assert logsumexp_error(fsm.logsumexp(columns, axis=0), exact.logsumexp, x).max() <= ULPS


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_streamed_output(dtype):
    """Outputs beyond the caches are written another way."""
    rng = np.random.default_rng(5)
    few, exact = family_rows("deviation 4", dtype, 1000, count=50)
    picks = rng.integers(0, len(few), 8_000_000 // 1000)
    probabilities = fsm.softmax(few[picks])
    for i in range(0, len(picks), 97):
        assert oracle.ulp_error(probabilities[i], exact.softmax[picks[i]], dtype).max() <= ULPS


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gap", [1.0, 17.0, 34.5, 69.08, 80.0])
def test_log_probability_close_to_zero(dtype, gap):
    """-log1p(exp(-gap)): what x - logsumexp(x) loses altogether."""
    x = np.array([[0, -gap], [1000, 1000 - gap]], dtype)
    exact = oracle.rows(x)
    assert np.all(exact.log_softmax[:, 0] > -np.exp(-gap) * 1.001)
    got = fsm.log_softmax(x)
    assert np.all(got[:, 0] < 0)
    assert oracle.ulp_error(got, exact.log_softmax, dtype).max() <= ULPS
    loss = fsm.softmax_cross_entropy(x, [0, 0], reduction="none")
    assert oracle.ulp_error(loss, -exact.log_softmax[:, 0], dtype).max() <= ULPS
    selected = fsm.selected_log_softmax(x, [0, 0])
    assert oracle.ulp_error(selected, exact.log_softmax[:, 0], dtype).max() <= ULPS


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logsumexp_close_to_zero(dtype):
    """Rows shifted so that the sum of their exponentials is 1: the logarithm cancels the maximum."""
    for n in (2, 3, 10, 100, 1000):
        x, exact = family_rows("deviation 1", dtype, n, count=50)
        x = (x - exact.logsumexp[:, np.newaxis]).astype(dtype)
        row_max = np.abs(x.max(axis=-1))
        error = np.abs(fsm.logsumexp(x) - oracle.rows(x).logsumexp)
        assert np.all(error <= np.finfo(dtype).eps * np.maximum(1, row_max)), n


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 10, 100, 1000, 100_003])
@pytest.mark.parametrize("family", ["deviation 1", "deviation 20", "all equal", "repeated values"])
def test_probabilities_sum_to_one(dtype, n, family):
    # Each probability is within 2 ULP of its exact value p, and an ULP is at most eps * p (below
    # the normal numbers: the smallest subnormal). Summed over the row, whose exact values sum
    # to 1, that is 2 * eps + 2 * n * smallest_subnormal; the sum here is in long doubles.
    x, _ = family_rows(family, dtype, n, count=2)
    total = fsm.softmax(x).astype(oracle.Wide).sum(axis=-1)
    info = np.finfo(dtype)
    assert np.all(np.abs(total - 1) <= ULPS * (float(info.eps) + n * float(info.smallest_subnormal)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [0.25, 0.75, 1.5, 100.0])  # exact in both dtypes
def test_temperature(dtype, temperature):
    """Softmax is as exact as without one; log-softmax has the distance (x - max) / T, rounded twice."""
    for n in (1, 2, 5, 10, 33, 100, 1000):
        for family in ("deviation 4", "uniform", "offset 1e6"):
            x, _ = family_rows(family, dtype, n)
            distance = (x.max(axis=-1, keepdims=True).astype(oracle.Wide) - x) / temperature
            exact = oracle.rows(-distance)
            eps, below_normal = np.finfo(dtype).eps, ULPS * np.finfo(dtype).smallest_subnormal
            got = fsm.softmax(x, temperature=temperature)
            assert oracle.ulp_error(got, exact.softmax, dtype).max() <= ULPS, n
            bound = eps * (ULPS * np.abs(exact.log_softmax) + distance) + below_normal
            got = fsm.log_softmax(x, temperature=temperature)
            assert np.all(np.abs(got - exact.log_softmax) <= bound), n


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6, -1e6])
def test_temperature_with_a_large_offset(offset):
    """Scaling before shifting would cost 11 % at 1e6 in float32."""
    x = (np.array([0.0, 1, 2, 3.5]) + offset).astype(np.float32)
    t = np.float32(0.7)
    exact = oracle.rows(x.astype(oracle.Wide) / oracle.Wide(t)).softmax
    assert oracle.ulp_error(fsm.softmax(x, temperature=0.7), exact, np.float32).max() <= ULPS


def test_oracle_agrees_with_multiprecision():
    """The long doubles are right to a fiftieth of a float64 ULP, in every family."""
    for family in FAMILIES:
        for n in (2, 7, 40):
            x, exact = family_rows(family, np.float64, n)
            for i in (0, ROWS - 1):
                more_exact = oracle.multiprecision_row(x[i])
                for name in ("softmax", "log_softmax"):
                    wide, wider = getattr(exact, name)[i], getattr(more_exact, name)
                    error = np.abs(wide - wider) / oracle.spacing(wider, np.float64)
                    assert np.all((wide == wider) | (error < 0.02)), (family, n, name)
                if np.abs(exact.logsumexp[i]) > np.abs(x[i].max()) / 2:
                    error = np.abs(exact.logsumexp[i] - more_exact.logsumexp)
                    assert error <= 0.02 * oracle.spacing(more_exact.logsumexp, np.float64), (family, n)
