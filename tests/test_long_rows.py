"""Long rows, whose blocks are summed each relative to its own maximum: blocks of different heights.

Rows of 20,000 have four blocks of 5056, rows of 100,000 sixteen (csrc/run.c); each gets a height of its own.
"""

import numpy as np
import oracle
import pytest

import fastsoftmax as fsm

INF, NAN = np.inf, np.nan
N = 20_000
BLOCK = 5056

# The largest element of each block. Where nothing is subtracted from the logits (up to 256 in float32, 2048 in
# float64) blocks differ by a power of two; elsewhere by an exponential.
HEIGHTS = {
    "alike": [0, 0, 0, 0],
    "near": [3, -4, 0.5, -9],
    "rising": [-90, -60, -30, 0],
    "falling": [0, -16.5, -17, -30],
    "subnormal results": [0, -80, -95, -101],
    "subnormal results in float64": [0, -690, -715, -740],
    "nothing left": [-150, 0, -1500, -3000],
    "masked": [-1e9, 2, -3e38, -INF],
    "first masked": [-INF, -INF, -INF, 1],
    "large": [1000, 995, 960, 1000],
    "large and not": [250, 260, 255.9, 254],
    "large and not in float64": [2047, 2050, 2000, 1400],
    "large below 0": [-300, -310, -1e4, -255],
    "very large": [3e38, 1e38, 3e38, -3e38],
    "far below 0": [-2e5, -2e5, -200_010, -INF],
}

pytestmark = pytest.mark.usefixtures("isa", "exact_values")


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param


def row_of(heights, dtype, spread=6.0, n=N, block=BLOCK):
    """A row whose blocks have these maxima, each at some place of its block."""
    rng = np.random.default_rng(n)
    below = rng.uniform(-spread, 0, n)
    row = np.empty(n, dtype)
    with np.errstate(over="ignore"):
        for number, height in enumerate(heights):
            part = slice(number * block, min(n, (number + 1) * block))
            values = np.asarray(height + below[part]).astype(dtype)
            values[rng.integers(len(values))] = height
            row[part] = np.minimum(values, dtype(height))
    return row


def each_layout(row):
    """The row in each way that has a loop of its own: name, array, axis, the row's results from those of the array."""
    rows = np.stack([np.zeros_like(row), row, np.ones_like(row), row])
    yield "alone", row, 0, lambda result: [result]
    yield "rows", rows, 1, lambda result: [result[1], result[3]]
    yield "every second element", np.repeat(row, 2)[::2], 0, lambda result: [result]
    columns = np.repeat(row[:, np.newaxis], 33, axis=1)
    columns[:, 5] = 0
    yield "columns", columns, 0, lambda result: [result.T[0], result.T[32]]
    yield "few columns", columns[:, 4:8].copy(), 0, lambda result: [result.T[0], result.T[3]]


def each_layout_of_logits(row):
    """The same in two dimensions, for labels beside the rows."""
    for name, x, axis, pick in each_layout(row):
        yield (name, x[np.newaxis], 1, list) if x.ndim == 1 else (name, x, axis, pick)


@pytest.mark.parametrize("heights", HEIGHTS)
def test_blocks_of_different_heights(heights, dtype):
    row = row_of(HEIGHTS[heights], dtype)
    exact = oracle.rows(row)
    # Where the maximum and the sum's logarithm cancel: an epsilon of the larger one.
    allowed = np.maximum(2 * oracle.spacing(exact.logsumexp, dtype), np.finfo(dtype).eps * abs(row.max()))
    for name, x, axis, pick in each_layout(row):
        for p in pick(fsm.softmax(x, axis)):
            assert oracle.ulp_error(p, exact.softmax, dtype).max() <= 2, name
        for logp in pick(fsm.log_softmax(x, axis)):
            assert oracle.ulp_error(logp, exact.log_softmax, dtype).max() <= 2, name
        for value in pick(fsm.logsumexp(x, axis)):
            assert abs(oracle.Wide(value) - exact.logsumexp) <= allowed, name


@pytest.mark.parametrize("heights", HEIGHTS)
def test_in_place(heights, dtype):
    row = row_of(HEIGHTS[heights], dtype)
    for name, x, axis, _ in each_layout(row):
        for function in (fsm.softmax, fsm.log_softmax):
            expected, y = function(x, axis), x.copy()
            function(y, axis, out=y)
            np.testing.assert_array_equal(y, expected, err_msg=name)
    for name, x, axis, _ in each_layout_of_logits(row):
        labels = np.arange(x.shape[1 - axis]) * 999 % N
        loss, expected = fsm.softmax_cross_entropy_value_and_grad(x, labels, axis, reduction="none")
        y = x.copy()
        loss_in_place, gradient = fsm.softmax_cross_entropy_value_and_grad(y, labels, axis, reduction="none", out=y)
        np.testing.assert_array_equal(loss_in_place, loss, err_msg=name)
        np.testing.assert_array_equal(gradient, expected, err_msg=name)


@pytest.mark.parametrize("heights", HEIGHTS)
@pytest.mark.parametrize("temperature", [0.25, 1.7, 40])
def test_temperatures(heights, dtype, temperature):
    row = row_of(HEIGHTS[heights], dtype)
    wide = row.astype(oracle.Wide)
    distance = (wide - wide.max()) / oracle.Wide(dtype(temperature))
    exact = oracle.rows(distance)
    allowed = 2 * oracle.spacing(exact.log_softmax, dtype) + np.finfo(dtype).eps * np.abs(distance)
    with np.errstate(over="ignore"):
        in_range = np.isfinite(exact.log_softmax.astype(dtype))
    for name, x, axis, pick in each_layout(row):
        for p in pick(fsm.softmax(x, axis, temperature=temperature)):
            assert oracle.ulp_error(p, exact.softmax, dtype).max() <= 2, name
        for logp in pick(fsm.log_softmax(x, axis, temperature=temperature)):
            error = np.abs(logp[in_range].astype(oracle.Wide) - exact.log_softmax[in_range])
            assert np.all(error <= allowed[in_range]), name
            assert np.all(logp[~in_range] == -INF), name


@pytest.mark.parametrize("heights", HEIGHTS)
@pytest.mark.parametrize("label", [0, BLOCK - 1, BLOCK, N - 1])
def test_loss_and_gradient(heights, dtype, label):
    row = row_of(HEIGHTS[heights], dtype)
    exact = oracle.cross_entropy(row[np.newaxis], [label])
    for name, x, axis, pick in each_layout_of_logits(row):
        labels = np.full(x.shape[1 - axis], label)
        loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, labels, axis, reduction="none")
        np.testing.assert_array_equal(loss, fsm.softmax_cross_entropy(x, labels, axis, reduction="none"), err_msg=name)
        for got in pick(gradient):
            error = np.abs(got.astype(oracle.Wide) - exact.gradient[0])
            assert np.all(error <= 2 * oracle.spacing(exact.gradient_terms[0], dtype)), name
        for got in pick(loss):
            assert oracle.ulp_error(got, exact.loss, dtype) <= 2 or not np.isfinite(exact.loss.astype(dtype)), name


@pytest.mark.parametrize("place", [0, BLOCK, N - 1])
def test_nan_and_infinity(dtype, place):
    for heights in ("alike", "rising", "large", "masked"):
        for value in (NAN, INF):
            row = row_of(HEIGHTS[heights], dtype)
            row[place] = value
            for name, x, axis, pick in each_layout(row):
                for function in (fsm.softmax, fsm.log_softmax):
                    assert all(np.all(np.isnan(result)) for result in pick(function(x, axis))), name
                result = fsm.logsumexp(x, axis)
                np.testing.assert_array_equal(result if result.ndim == 0 else result[-1], value, err_msg=name)


@pytest.mark.parametrize("gap", [0, 1, 16])
@pytest.mark.parametrize("n", [N, 8000])
def test_results_past_the_caches(dtype, gap, n):
    """More than 16 MB of them (STREAM_BYTES): exponentials wait in memory where those of the row before have waited."""
    count = (17 << 20) // (n * np.dtype(dtype).itemsize)
    kinds = np.stack([row_of(heights, dtype, n=n, block=n // 4 + 1) for heights in HEIGHTS.values()])
    x = kinds[np.arange(count) % len(kinds)]
    labels = np.arange(count) % len(kinds)
    memory = np.zeros((count, n + gap), dtype)
    out = memory[:, :n]
    for function in (fsm.softmax, fsm.log_softmax):
        function(x, out=out)
        expected = function(kinds)
        for first in range(0, count, len(kinds)):
            part = out[first : first + len(kinds)]
            np.testing.assert_array_equal(part, expected[: len(part)])
    options = {"reduction": "none"}
    expected_loss, expected = fsm.softmax_cross_entropy_value_and_grad(kinds, labels[: len(kinds)], **options)
    loss, _ = fsm.softmax_cross_entropy_value_and_grad(x, labels, out=out, **options)
    np.testing.assert_array_equal(loss, expected_loss[labels])
    for first in range(0, count, len(kinds)):
        part = out[first : first + len(kinds)]
        np.testing.assert_array_equal(part, expected[: len(part)])
    assert not memory[:, n:].any()


def test_ties_across_blocks(dtype):
    """The maximum in every block, and nothing else: what is kept out of the sum is counted, and counted once."""
    for repeats in ([1, 1, 1, 1], [BLOCK, 0, 1, 3], [0, 2, 0, 0]):
        row = np.full(N, -INF, dtype)
        for number, count in enumerate(repeats):
            row[number * BLOCK : number * BLOCK + count] = 7
        for name, x, axis, pick in each_layout(row):
            for p in pick(fsm.softmax(x, axis)):
                assert oracle.ulp_error(p[row == 7], 1 / oracle.Wide(sum(repeats)), dtype).max() <= 1, name
                assert not p[row != 7].any(), name
            for logp in pick(fsm.log_softmax(x, axis)):
                exact = -np.log(oracle.Wide(sum(repeats)))
                assert oracle.ulp_error(logp[row == 7], exact, dtype).max() <= 1, name


@pytest.mark.parametrize("threads_wanted", [1, 2, 3, 5])
def test_blocks_shared_out_among_threads(dtype, threads, threads_wanted):
    n, block = 100_000, 6272
    for seed in range(3):
        heights = np.random.default_rng(seed).choice([0, -20, -50, -85, -120, -INF, 1, 300 * (seed == 2)], 16)
        row = row_of(heights, dtype, n=n, block=block)
        threads(threads_wanted)
        exact = oracle.rows(row)
        assert oracle.ulp_error(fsm.softmax(row), exact.softmax, dtype).max() <= 2
        assert oracle.ulp_error(fsm.log_softmax(row), exact.log_softmax, dtype).max() <= 2


@pytest.mark.parametrize("place", [0, 6000, N - 1])
def test_lone_maximum(dtype, place):
    """All other blocks are so low that they do not count, or hardly."""
    for others in (-60, -100, -125, -150, -250) if dtype == np.float32 else (-300, -700, -900, -1060, -1900):
        row = np.full(N, others, dtype)
        row[place] = 0
        exact = oracle.rows(row)
        for name, x, axis, pick in each_layout(row):
            for logp in pick(fsm.log_softmax(x, axis)):
                assert oracle.ulp_error(logp, exact.log_softmax, dtype).max() <= 2, (name, others)
            for p in pick(fsm.softmax(x, axis)):
                assert oracle.ulp_error(p, exact.softmax, dtype).max() <= 2, (name, others)
        log_probability = fsm.selected_log_softmax(row[np.newaxis], [place])
        assert oracle.ulp_error(log_probability, exact.log_softmax[[place]], dtype).max() <= 2, others
        loss = fsm.softmax_cross_entropy(row[np.newaxis], [place])
        assert oracle.ulp_error(loss, -exact.log_softmax[place], dtype) <= 2, others


@pytest.mark.parametrize("grad_loss", [1e-18, 1e-15, 1e-12, 1e-9, 1, 1e20])
@pytest.mark.parametrize("heights", [[0, -16, -16, -16], [-16, 0, -60, -80], [-25, -16, 0, -3], [1000, 980, 960, 905]])
def test_upstream_gradients(dtype, heights, grad_loss):
    """Of any magnitude: blocks that are lower lose no digits."""
    for spread in (0, 6):
        row = row_of(heights, dtype, spread)
        exact = oracle.cross_entropy(row[np.newaxis], [0], grad_loss=grad_loss)
        allowed = 6 * np.finfo(dtype).eps * exact.gradient_terms[0] + 2 * np.finfo(dtype).smallest_subnormal
        for name, x, axis, pick in each_layout_of_logits(row):
            labels = np.zeros(x.shape[1 - axis], int)
            gradient = fsm.softmax_cross_entropy_grad(x, labels, axis, reduction="sum", grad_loss=grad_loss)
            for got in pick(gradient):
                assert np.all(np.abs(got.astype(oracle.Wide) - exact.gradient[0]) <= allowed), name
