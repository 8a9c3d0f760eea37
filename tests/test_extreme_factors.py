"""float32 with temperatures, weights and upstream gradients whose range is float64's: results as exact as ever."""

import numpy as np
import oracle
import pytest

import fastsoftmax as fsm

try:
    import ml_dtypes

    NARROW_DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)]
except ImportError:
    NARROW_DTYPES = [np.dtype(np.float16), np.dtype(np.float32)]

LARGEST = np.finfo(np.float32).max
SMALLEST = np.finfo(np.float32).tiny


# ---- Temperatures -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "temperature"),
    [([LARGEST, -LARGEST], 1e40), ([SMALLEST, 0], 1e-44), ([SMALLEST / 4, 0, -SMALLEST], 2e-39), ([3, 2, 1], 1e300)],
)
def test_temperature_that_is_no_normal_float32(x, temperature):
    x = np.array(x, np.float32)
    wide = x.astype(np.float64)
    for function in (fsm.softmax, fsm.log_softmax):
        expected = function(wide, temperature=temperature).astype(np.float32)
        np.testing.assert_array_equal(function(x, temperature=temperature), expected)
    picked = fsm.selected_log_softmax(x, [1, 0], temperature=temperature)
    np.testing.assert_array_equal(picked, expected[[1, 0]])
    assert picked.dtype == np.float32
    one = fsm.selected_log_softmax(x, 1, temperature=temperature)
    assert type(one) is np.float32
    assert one == expected[1]


@pytest.mark.parametrize("dtype", NARROW_DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1, (0, 2), None])
def test_rows_beside_such_a_temperature_keep_their_bits(dtype, axis):
    x = np.random.default_rng(1).normal(0, 4, (3, 5, 4)).astype(dtype)
    mask = np.random.default_rng(2).random((3, 5, 4)) < 0.8
    axes = (0, 1, 2) if axis is None else axis
    temperature = np.full(np.max(x, axis=axes, keepdims=True).shape, 0.7)
    usual = temperature.copy()
    temperature.flat[::2] = np.resize([1e-50, 1e50], temperature.flat[::2].size)
    changed = np.broadcast_to(temperature != usual, x.shape)
    for function in (fsm.softmax, fsm.log_softmax):
        for where in (None, mask):
            got = function(x, axis, temperature=temperature, where=where)
            assert got.dtype == dtype
            beside = function(x, axis, temperature=usual, where=where)
            np.testing.assert_array_equal(got[~changed], beside[~changed])
            wide = function(x.astype(np.float64), axis, temperature=temperature, where=where)
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(got[changed], wide.astype(np.float32).astype(dtype)[changed])
            out = x.copy()
            assert function(out, axis, temperature=temperature, where=where, out=out) is out
            np.testing.assert_array_equal(out, got)


def test_selected_beside_such_a_temperature():
    x = np.random.default_rng(1).normal(0, 4, (3, 5)).astype(np.float32)
    temperature = np.array([[1e-50], [0.7], [1e50]])
    picks = np.array([[0, 4], [1, 1], [2, 3]])
    expected = np.take_along_axis(fsm.log_softmax(x, temperature=temperature), picks, 1)
    np.testing.assert_array_equal(fsm.selected_log_softmax(x, picks, temperature=temperature), expected)
    one = fsm.selected_log_softmax(x, picks[:, 0], temperature=temperature, out=np.empty(3))
    np.testing.assert_array_equal(one, expected[:, 0])
    several = fsm.selected_log_softmax(x, picks[:1], temperature=temperature)  # the same picks from every row
    logp = fsm.log_softmax(x, temperature=temperature)
    np.testing.assert_array_equal(several, np.take_along_axis(logp, np.repeat(picks[:1], 3, axis=0), 1))
    with pytest.raises(IndexError, match=r"index\[1, 0\] is 5"):
        fsm.selected_log_softmax(x, [[0], [5], [0]], temperature=temperature)


# ---- Weights and upstream gradients -----------------------------------------------------


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    x = rng.normal(0, 2, (4, 3)).astype(np.float32)
    return x, rng.integers(0, 3, 4), rng.dirichlet(np.ones(3), 4).astype(np.float32)


FACTORS = [
    {"sample_weight": [1e39, 1.0, 2.0, 3.0]},
    {"sample_weight": [1e300, 1e-300, 1e300, 1.0]},
    {"weight": [1e200, 1e-200, 1.0]},
    {"weight": [1e-100, 2e-100, 3e-100], "sample_weight": [1e90, 2e100, 0.0, -1e100]},
    {"sample_weight": [1e30] * 4, "weight": [1e30, 1e10, 1.0], "grad_loss": 1e-50},
    {"sample_weight": [1e-60] * 4, "grad_loss": 1e60},
    {"grad_loss": 1e-42},
    {"z_loss": 0.25, "weight": [1e-60, 1e60, 1.0], "label_smoothing": 0.1},
]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("n", [2, 10, 1000, 5000, 20_000])
def test_small_upstream_gradients(n):
    """Of any magnitude: the gradient is a normal number long after the upstream one over the sum is none."""
    x = np.random.default_rng(n).normal(0, 1, (3, n)).astype(np.float32)
    labels = np.arange(3) % n
    for exponent in range(-26, 0):
        upstream = 10.0**exponent
        exact = oracle.cross_entropy(x, labels, reduction="sum", grad_loss=upstream)
        for name, value in (("grad_loss", upstream), ("sample_weight", [upstream] * 3), ("weight", [upstream] * n)):
            got = fsm.softmax_cross_entropy_grad(x, labels, reduction="sum", **{name: value})
            allowed = 6 * np.finfo(np.float32).eps * exact.gradient_terms + np.finfo(np.float32).smallest_subnormal
            assert np.all(np.abs(got.astype(oracle.Wide) - exact.gradient) <= allowed), (exponent, name)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("options", FACTORS, ids=str)
def test_loss_and_gradient_are_those_of_float64(data, options, reduction):
    x, labels, soft = data
    for targets in (labels, soft):
        with np.errstate(all="raise"):
            loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, targets, reduction=reduction, **options)
            alone = fsm.softmax_cross_entropy_grad(x, targets, reduction=reduction, **options)
        assert loss.dtype == gradient.dtype == np.float32
        np.testing.assert_array_equal(gradient, alone)
        wide = fsm.softmax_cross_entropy_value_and_grad(x.astype(np.float64), targets, reduction=reduction, **options)
        with np.errstate(all="ignore"):
            expected_loss, expected_gradient = (value.astype(np.float32) for value in wide)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
        largest = np.abs(expected_gradient[np.isfinite(expected_gradient)]).max(initial=0)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6 * min(largest, 1))


def test_ordinary_results_of_extreme_factors():
    """Each of these was once inf, NaN or 0."""
    x = np.array([[1, 2, 0], [0, 1, 1]], np.float32)
    plain = fsm.softmax_cross_entropy_grad(x, [0, 1], reduction="sum")
    scaled = fsm.softmax_cross_entropy_grad(x, [0, 1], sample_weight=[1e-60] * 2, grad_loss=1e60, reduction="sum")
    np.testing.assert_allclose(scaled, plain, rtol=1e-6)
    losses = fsm.softmax_cross_entropy(x, [0, 1], reduction="none")
    for sample_weight in ([1e39, 1.0], [1e300, 1e-300]):
        np.testing.assert_allclose(fsm.softmax_cross_entropy(x, [0, 1], sample_weight=sample_weight), losses[0], 1e-6)
    mean = fsm.softmax_cross_entropy(x, [0, 1], weight=[1e200, 1e-200, 1])
    np.testing.assert_allclose(mean, losses[0], rtol=1e-6)
    rare = np.array([[0, 100]], np.float32)
    gradient, hessian = fsm.softmax_cross_entropy_grad_hess(rare, [1], sample_weight=[1e45])
    np.testing.assert_allclose([gradient[0, 0], hessian[0, 0]], 1e45 * np.exp(-100.0), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_rows_beside_an_extreme_weight_keep_their_bits(data, reduction):
    x, labels, soft = data
    sample_weight, usual = np.array([1e45, 0.3, 1e-45, 0.7]), np.array([1, 0.3, 1, 0.7])
    for targets in (labels, soft):
        for logits in (x, np.asfortranarray(x)):
            got = fsm.softmax_cross_entropy_grad(logits, targets, sample_weight=sample_weight, reduction=reduction)
            expected = fsm.softmax_cross_entropy_grad(x, targets, sample_weight=usual, reduction=reduction)
            np.testing.assert_array_equal(got[1::2], expected[1::2])
        got = fsm.softmax_cross_entropy_grad_hess(x, targets, sample_weight=sample_weight, min_hess=0.25)
        expected = fsm.softmax_cross_entropy_grad_hess(x, targets, sample_weight=usual, min_hess=0.25)
        for mine, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(mine[1::2], other[1::2])
        got = fsm.softmax_cross_entropy(x, targets, sample_weight=sample_weight, reduction="none")
        expected = fsm.softmax_cross_entropy(x, targets, sample_weight=usual, reduction="none")
        np.testing.assert_array_equal(got[1::2], expected[1::2])


def test_grad_hess_is_that_of_float64(data):
    x, labels, soft = data
    for targets, options in (
        (labels, {"weight": [1e200, 1e-200, 1.0]}),
        (labels, {"weight": [1e-60, 1e-50, 1e-55], "sample_weight": [1e60, 1e55, 0.0, 1e50]}),
        (soft, {"sample_weight": [1e-40, 1.0, 1e-300, 0.0], "factor": 1e40, "min_hess": 1e-3}),
        (labels, {"sample_weight": [-1e50, 1e-50, 1.0, 0.0]}),
    ):
        wide = fsm.softmax_cross_entropy_grad_hess(x.astype(np.float64), targets, **options)
        with np.errstate(all="raise"):
            got = fsm.softmax_cross_entropy_grad_hess(x, targets, **options)
        for mine, other in zip(got, wide, strict=True):
            assert mine.dtype == np.float32
            with np.errstate(all="ignore"):
                np.testing.assert_allclose(mine, other.astype(np.float32), rtol=1e-5, atol=1e-42)


def test_zero_infinite_and_nan_weights_keep_their_meaning(data):
    x, labels, _ = data
    usual = np.array([0, np.inf, np.nan, 1.0])
    for reduction in ("none", "sum"):
        expected = fsm.softmax_cross_entropy_value_and_grad(x, labels, sample_weight=usual, reduction=reduction)
        extreme = np.array([0, np.inf, np.nan, 1e60])
        got = fsm.softmax_cross_entropy_value_and_grad(x, labels, sample_weight=extreme, reduction=reduction)
        np.testing.assert_array_equal(got[1][:3], expected[1][:3])
        if reduction == "none":
            np.testing.assert_array_equal(got[0][:3], expected[0][:3])
        else:
            assert np.isnan(got[0])


def test_extreme_weights_in_place_and_in_another_dtype(data):
    x, labels, _ = data
    options = {"sample_weight": [1e-60, 1, 1, 1e-60], "grad_loss": [1e60, 1, 1, 1e59], "reduction": "none"}
    expected = fsm.softmax_cross_entropy_grad(x, labels, **options)
    for out in (x.copy(), np.empty(x.shape), np.empty(x.shape, np.float16)):
        logits = out if out.dtype == x.dtype else x
        assert fsm.softmax_cross_entropy_grad(logits, labels, out=out, **options) is out
        np.testing.assert_array_equal(out, expected.astype(out.dtype))
    out = x.copy()
    for bad in ([0, 1, 3, 0], [3, 1, 1, 0]):
        with pytest.raises(IndexError, match="is 3, expected a class"):
            fsm.softmax_cross_entropy_grad(out, bad, out=out, **options)
        np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("dtype", NARROW_DTYPES[:-1], ids=str)
def test_extreme_weights_of_half_precision(data, dtype):
    x, labels, _ = data
    x = x.astype(dtype)
    loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, labels, sample_weight=[1e39, 1, 1, 1])
    assert loss.dtype == gradient.dtype == dtype
    expected = fsm.softmax_cross_entropy(x[:1], labels[:1])
    np.testing.assert_allclose(float(loss), float(expected), rtol=2**-7)
