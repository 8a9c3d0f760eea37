"""fastsoftmax.reference: the same names, signatures, results and errors as the library."""

import inspect

import cases
import numpy as np
import oracle
import pytest

import fastsoftmax as fsm
from fastsoftmax import reference

try:
    import ml_dtypes

    HALF_DTYPES = [np.float16, ml_dtypes.bfloat16]
except ImportError:
    HALF_DTYPES = [np.float16]

PROBABILITIES = [case for case in cases.CASES if case.split(",")[0] == "softmax"]

THREADS = {"num_threads", "set_num_threads", "get_num_threads", "show_config", "get_config"}


def test_same_names():
    assert set(reference.__all__) == set(fsm.__all__) - THREADS


@pytest.mark.parametrize("name", reference.__all__)
def test_same_parameters(name):
    def parameters(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert parameters(getattr(reference, name)) == parameters(getattr(fsm, name))
    assert getattr(reference, name).__doc__


def condition(data):
    """How much a weighted sum of exponentials cancels, in the worst row."""
    with np.errstate(all="ignore"):
        x, b = data.x.astype(float), data.b.astype(float)
        terms = b * np.exp(x - np.max(x, axis=-1, keepdims=True))
        conditions = np.abs(terms).sum(-1) / np.abs(terms.sum(-1))
    return np.max(conditions, where=np.isfinite(conditions), initial=1)


def assert_close(got, expected, data, dtype, case):
    """Equal up to the reference's roundings.

    It sums n terms in pairs or one after the other, so a sum is off by n * eps / 2 of its terms'
    magnitudes; its x - max rounds, which the exponential of a distance d turns into d * eps / 2. The
    rest is a dozen roundings at most. Where b makes a sum cancel, all this weighs as much more. It
    is relative to the result where that is a probability, and otherwise to 1 at least: logarithms and
    differences may be small beside what they come from.
    """
    n = data.x.shape[-1]
    finite = data.x[np.isfinite(data.x)].astype(float)
    distance = min(np.ptp(finite), 800) if finite.size else 0  # beyond that exponentials are 0
    eps = float(np.finfo(np.float32 if dtype in HALF_DTYPES else dtype).eps)
    factor = 16 + n + 4 * distance
    if case == "logsumexp, b":
        factor *= condition(data)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        a, b = a.astype(float), b.astype(float)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        usual = np.isfinite(a) & np.isfinite(b)
        np.testing.assert_array_equal(a[~usual], b[~usual])
        scale = np.maximum(np.abs(a), np.abs(b))[usual]
        if case not in PROBABILITIES:
            scale = np.maximum(1, scale)
        allowed = factor * eps * scale + 4 * float(np.spacing(dtype(0)))  # a few roundings among subnormals
        if dtype in HALF_DTYPES:  # and the two round to neighbours
            half_eps = 2.0**-10 if dtype == np.float16 else 2.0**-7
            allowed = allowed + half_eps * scale
        assert np.all(np.abs(a[usual] - b[usual]) <= allowed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, *HALF_DTYPES])
@pytest.mark.parametrize("case", cases.CASES)
def test_agrees(case, dtype):
    for n in (1, 2, 3, 10, 33, 100, 1000):
        data = cases.make_rows(12, n, dtype)
        assert_close(cases.results(case, reference, data), cases.results(case, fsm, data), data, dtype, case)


# Of a -inf in place of a log-probability nothing is promised.
SPECIAL_CASES = [case for case in cases.CASES if case != "log_softmax_vjp"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", SPECIAL_CASES)
def test_agrees_on_special_rows(case, dtype):
    for n in (2, 5, 40):
        data = cases.make_rows(21, n, dtype, special=True)
        assert_close(cases.results(case, reference, data), cases.results(case, fsm, data), data, dtype, case)


AXIS_CALLS = {
    "softmax": lambda f, x, axis: f.softmax(x, axis),
    "softmax, where": lambda f, x, axis: f.softmax(x, axis, where=x > 0),
    "log_softmax": lambda f, x, axis: f.log_softmax(x, axis, temperature=2.0),
    "logsumexp": lambda f, x, axis: f.logsumexp(x, axis),
    "logsumexp, keepdims": lambda f, x, axis: f.logsumexp(x, axis, keepdims=True),
    "logsumexp, b": lambda f, x, axis: f.logsumexp(x, axis, b=[[2.0], [0.0], [1.0]], return_sign=True)[1],
    "softmax_vjp": lambda f, x, axis: f.softmax_vjp(x, x + 1, axis),
    "log_softmax_vjp": lambda f, x, axis: f.log_softmax_vjp(x, x + 1, axis),
}


@pytest.mark.parametrize("axis", [0, 1, 2, -1, (0, 2), (1, 2), None, ()])
@pytest.mark.parametrize("call", AXIS_CALLS)
def test_agrees_on_axes(call, axis):
    for shape in ((4, 3, 5), (1, 3, 1), (0, 3, 2), (2, 3, 0)):
        x = np.random.default_rng(0).normal(size=shape)
        got, expected = AXIS_CALLS[call](reference, x, axis), AXIS_CALLS[call](fsm, x, axis)
        assert type(got) is type(expected)
        assert np.shape(got) == np.shape(expected)
        np.testing.assert_allclose(got, expected, rtol=1e3 * np.finfo(float).eps, atol=1e3 * np.finfo(float).eps)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_loss_agrees_on_axes(axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 5))
    labels = rng.integers(0, x.shape[axis], np.delete(x.shape, axis))
    soft = np.moveaxis(rng.dirichlet(np.ones(x.shape[axis]), labels.shape), -1, axis)
    weight = rng.uniform(1, 2, x.shape[axis])
    tolerance = {"rtol": 0, "atol": 64 * np.finfo(float).eps}
    for y in (labels, soft):
        for function in ("softmax_cross_entropy_value_and_grad", "softmax_cross_entropy_grad_hess"):
            options = {} if y is soft and function.endswith("hess") else {"weight": weight}
            got = getattr(reference, function)(x, y, axis, **options)
            for a, b in zip(got, getattr(fsm, function)(x, y, axis, **options), strict=True):
                np.testing.assert_allclose(a, b, **tolerance)
    for pick in (labels, np.expand_dims(labels, axis)):
        got = reference.selected_log_softmax(x, pick, axis, temperature=0.5)
        np.testing.assert_allclose(got, fsm.selected_log_softmax(x, pick, axis, temperature=0.5), **tolerance)
    p = fsm.softmax(x, axis)
    np.testing.assert_allclose(reference.softmax_jacobian(p, axis), fsm.softmax_jacobian(p, axis), **tolerance)


X = np.ones((2, 3))
EMPTY = X[:0]
ERRORS = {
    "masked": lambda f: f.softmax(np.ma.masked_array(X)),
    "complex": lambda f: f.log_softmax(X.astype(complex)),
    "object": lambda f: f.logsumexp(X.astype(object)),
    "axis": lambda f: f.softmax(X, 2),
    "axis size": lambda f: f.softmax(X, 2**31),
    "axis twice": lambda f: f.softmax(X, (0, -2)),
    "axis kind": lambda f: f.logsumexp(X, 0.0),
    "one axis": lambda f: f.softmax_cross_entropy(X, [0, 1], None),
    "one axis of p": lambda f: f.softmax_jacobian(X, (0,)),
    "no dimension": lambda f: f.selected_log_softmax(1.0, 0),
    "where": lambda f: f.softmax(X, where=[True, False]),
    "where kind": lambda f: f.softmax(X, where=X),
    "temperature": lambda f: f.softmax(X, temperature=0),
    "temperature shape": lambda f: f.log_softmax(X, temperature=[1, 2, 3]),
    "temperature kind": lambda f: f.log_softmax(X, temperature="1"),
    "b": lambda f: f.logsumexp(X, b=[1, 2]),
    "b kind": lambda f: f.logsumexp(X, b=1j),
    "out": lambda f: f.softmax(X, out=[0.0]),
    "out shape": lambda f: f.softmax(X, out=np.empty(3)),
    "out dtype": lambda f: f.softmax(X, out=np.empty((2, 3), int)),
    "out complex": lambda f: f.softmax(X, out=np.empty((2, 3), complex)),
    "g": lambda f: f.softmax_vjp(X, X[0]),
    "labels": lambda f: f.softmax_cross_entropy(X, [0, 3]),
    "labels kind": lambda f: f.softmax_cross_entropy(X, [0.0, 1.0]),
    "labels shape": lambda f: f.softmax_cross_entropy(X, [0, 1, 2]),
    "index": lambda f: f.selected_log_softmax(X, [0, -1]),
    "index kind": lambda f: f.selected_log_softmax(X, [0.0, 1.0]),
    "weight": lambda f: f.softmax_cross_entropy(X, [0, 1], weight=[1, 1]),
    "sample_weight": lambda f: f.softmax_cross_entropy(X, [0, 1], sample_weight=1),
    "smoothing": lambda f: f.softmax_cross_entropy(X, [0, 1], label_smoothing=2),
    "reduction": lambda f: f.softmax_cross_entropy(X, [0, 1], reduction="all"),
    "ignore_index": lambda f: f.softmax_cross_entropy(X, X, ignore_index=0),
    "ignore_index size": lambda f: f.softmax_cross_entropy(X, [0, 1], ignore_index=2**64),
    "z_loss": lambda f: f.softmax_cross_entropy(X, [0, 1], z_loss=np.nan),
    "z_loss kind": lambda f: f.softmax_cross_entropy(X, [0, 1], z_loss=[1, 2]),
    "grad_loss": lambda f: f.softmax_cross_entropy_grad(X, [0, 1], grad_loss=[1, 1]),
    "unknown option": lambda f: f.softmax_cross_entropy(X, [0, 1], weights=None),
    "option of the gradient": lambda f: f.softmax_cross_entropy(X, [0, 1], grad_loss=1),
    "factor": lambda f: f.softmax_cross_entropy_grad_hess(X, [0, 1], factor=0),
    "min_hess": lambda f: f.softmax_cross_entropy_grad_hess(X, [0, 1], min_hess=-1),
    "hess weight": lambda f: f.softmax_cross_entropy_grad_hess(X, X, weight=[1, 1, 1]),
    "same empty outs": lambda f: f.softmax_cross_entropy_grad_hess(EMPTY, [], grad_out=EMPTY, hess_out=EMPTY),
    "same outs": lambda f: f.softmax_cross_entropy_grad_hess(X, [0, 1], grad_out=X, hess_out=X),
}


@pytest.mark.parametrize("name", ERRORS)
def test_same_errors(name):
    with pytest.raises((TypeError, ValueError, IndexError)) as expected:
        ERRORS[name](fsm)
    with pytest.raises(expected.type):
        ERRORS[name](reference)


def test_rows_without_any_target():
    """All probabilities 0: no loss, but where the logits have no softmax."""
    x = np.array([[1, 2, 3], [0, -np.inf, 0], [np.nan, 0, 0], [np.inf, 0, 0], [-np.inf] * 3])
    for f in (reference, fsm):
        loss = f.softmax_cross_entropy(x, np.zeros_like(x), reduction="none")
        np.testing.assert_array_equal(loss, [0, 0, np.nan, np.nan, np.nan])


def test_half_precision_in_a_wider_out():
    """Not rounded twice."""
    x, out, expected = X.astype(np.float16), np.empty((2, 3), np.float32), np.empty((2, 3), np.float32)
    np.testing.assert_array_equal(reference.softmax(x, out=out), fsm.softmax(x, out=expected))
    assert out[0, 0] == np.float32(1) / np.float32(3)


def test_out():
    out = np.empty((2, 3), np.float32)
    assert reference.softmax(X, out=out) is out
    np.testing.assert_array_equal(out, reference.softmax(X).astype(np.float32))
    assert reference.softmax_cross_entropy_grad(X, [0, 1], out=out) is out
    row_out = np.empty(2)
    assert reference.logsumexp(X, out=row_out, b=2.0, return_sign=True)[0] is row_out
    read_only = np.zeros((2, 3))
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        reference.softmax(X, out=read_only)


@pytest.mark.usefixtures("exact_values")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_close_to_the_exact_values(dtype):
    """The oracle of others is itself no worse than its roundings."""
    for n in (1, 2, 10, 100, 1000):
        x = cases.make_rows(12, n, dtype).x
        exact = oracle.rows(x)
        eps = np.finfo(dtype).eps
        distance = np.ptp(x, axis=-1, keepdims=True)
        relative = eps * (8 + distance + np.log2(n + 1))
        assert np.all(np.abs(reference.softmax(x) - exact.softmax) <= relative * exact.softmax)
        assert np.all(np.abs(reference.log_softmax(x) - exact.log_softmax) <= relative * np.abs(exact.log_softmax))
        assert np.all(np.abs(reference.logsumexp(x) - exact.logsumexp) <= eps * (8 + np.abs(x).max(-1)))
