"""Agreement with those whose names and meanings were taken: SciPy, torch, ONNX, scikit-learn.

Peers are rounded, too, and some badly (benchmarks/results/accuracy.md has figures), so tolerances here are the peers'
own: those of the tests borrowed from them, or what their summing in the dtype allows.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsoftmax as fsm
import fastsoftmax.special
from fastsoftmax import _peers, _timing

# ---- SciPy ------------------------------------------------------------------------------


def scipy_tests():
    """SciPy's own tests of the three functions, with ours in their place; None where there are none."""
    if importlib.util.find_spec("scipy") is None:
        return None
    import scipy.special

    path = Path(scipy.special.__file__).parent / "tests" / "test_logsumexp.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("scipy_test_logsumexp", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in fsm.special.__all__:
        assert hasattr(module, name)
        setattr(module, name, getattr(fsm.special, name))
    for test in vars(module.TestLogSumExp).values():
        # Newer versions of pytest refuse iterators as parameters.
        marks = getattr(test, "pytestmark", [])
        marks[:] = [
            pytest.mark.parametrize(m.args[0], list(m.args[1])).mark if m.name == "parametrize" else m for m in marks
        ]
    return module


SCIPY = scipy_tests()

# Of complex numbers alone.
EXCLUDED = {"test_logsumexp_complex_sign", "test_gh21610", "test_gh21709_small_imaginary"}


class FromSciPy:
    """Runs the tests inherited with NumPy for the array library."""

    @pytest.fixture
    def xp(self):
        from scipy._lib._array_api import array_namespace

        return array_namespace(np.empty(0))

    @pytest.fixture
    def devices(self):
        return ["cpu", None]

    @pytest.fixture(autouse=True)
    def _real_numbers_alone(self, request):
        if request.node.originalname in EXCLUDED:
            pytest.skip("of complex numbers")
        call = getattr(request.node, "callspec", None)
        values = call.params.values() if call else ()
        if any(isinstance(v, complex) or (isinstance(v, str) and v.startswith("complex")) for v in values):
            pytest.skip("of complex numbers")


if SCIPY is None:

    @pytest.mark.skip(reason="SciPy's tests are not installed")
    def test_scipy_own_tests():
        pass

else:

    class TestLogSumExpFromSciPy(FromSciPy, SCIPY.TestLogSumExp):
        pass

    class TestSoftmaxFromSciPy(FromSciPy, SCIPY.TestSoftmax):
        pass

    class TestLogSoftmaxFromSciPy(FromSciPy, SCIPY.TestLogSoftmax):
        pass


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_scipy(axis, dtype):
    scipy_special = pytest.importorskip("scipy.special")
    x = np.random.default_rng(0).normal(0, 8, (4, 7, 5)).astype(dtype)
    b = np.random.default_rng(1).normal(size=(4, 7, 5)).astype(dtype)
    # SciPy's x - max rounds: distances up to 64 make 64 roundings of an exponential; its
    # log-probabilities are as far off however close to 0 they are.
    rounding = 80 * np.finfo(np.result_type(dtype, np.float32)).eps
    for name in ("softmax", "log_softmax", "logsumexp"):
        got, expected = getattr(fsm.special, name)(x, axis), getattr(scipy_special, name)(x, axis)
        assert np.shape(got) == np.shape(expected)
        assert type(got) is type(expected)
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=rounding, atol=0 if name == "softmax" else rounding)
    for keepdims in (False, True):
        got = fsm.special.logsumexp(x, axis, b, keepdims, True)
        expected = scipy_special.logsumexp(x, axis, b, keepdims, True)
        np.testing.assert_array_equal(got[1], expected[1])
        np.testing.assert_allclose(got[0], expected[0], rtol=rounding, atol=rounding)
        assert got[0].shape == got[1].shape == expected[0].shape


@pytest.mark.parametrize(
    "row", [[np.inf, 1], [-np.inf, 1], [-np.inf, -np.inf], [np.nan, 1], [np.nan, np.inf], [], [0], [1e308, -1e308]]
)
def test_scipy_on_special_values(row):
    scipy_special = pytest.importorskip("scipy.special")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(fsm.special.logsumexp(row), scipy_special.logsumexp(row))
        if row and not (np.inf in row and not np.isnan(row).any()):
            # Of +inf SciPy's log_softmax is NaN there alone; of an empty row its softmax raises.
            np.testing.assert_allclose(fsm.special.softmax(row), scipy_special.softmax(row), rtol=1e-15)
            np.testing.assert_array_equal(fsm.special.log_softmax(row), scipy_special.log_softmax(row))


def test_special_defaults_to_all_elements():
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(fsm.special.softmax(x), fsm.softmax(x, None))
    np.testing.assert_array_equal(fsm.special.log_softmax(x=x), fsm.log_softmax(x, None))
    assert fsm.special.logsumexp(a=x) == fsm.logsumexp(x, None)
    assert fsm.special.logsumexp(x).ndim == 0


# ---- torch ------------------------------------------------------------------------------


@st.composite
def torch_problems(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    n = draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    # Classes come second in torch, or first and alone.
    logits = rng.normal(0, draw(st.sampled_from([1, 5, 20])), (*shape[:1], n, *shape[1:])).astype(dtype)
    axis = 1 if shape else 0
    options = {"reduction": draw(st.sampled_from(["none", "sum", "mean"]))}
    if draw(st.booleans()):
        labels = np.asarray(rng.integers(0, n, shape))
        if draw(st.booleans()):
            options["ignore_index"] = draw(st.sampled_from([-100, 0, n - 1]))
            if options["ignore_index"] == -100:
                labels = np.where(rng.random(shape) < 0.3, -100, labels)
    else:
        labels = np.moveaxis(rng.dirichlet(np.ones(n), shape), -1, axis).astype(dtype)
    if draw(st.booleans()):
        weight = rng.uniform(0, 2, n).astype(dtype)
        weight[rng.random(n) < 0.2] = 0
        options["weight"] = weight
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 0.7, 1.0]))
    return logits, labels, axis, options


@given(torch_problems())
@settings(max_examples=250)
def test_torch(problem):
    """Loss and gradient of random problems, options alone and together."""
    torch = pytest.importorskip("torch")
    logits, labels, axis, options = problem
    x = torch.tensor(logits, requires_grad=True)
    given_options = {k: torch.tensor(v) if k == "weight" else v for k, v in options.items()}
    expected = torch.nn.functional.cross_entropy(x, torch.tensor(labels), **given_options)
    upstream = 1.5
    (expected * upstream).sum().backward()
    if labels.ndim < logits.ndim:
        options.setdefault("ignore_index", -100)  # torch's default
    loss, gradient = fsm.softmax_cross_entropy_value_and_grad(logits, labels, axis, grad_loss=upstream, **options)
    expected = expected.detach().numpy()
    assert loss.dtype == expected.dtype
    assert loss.shape == expected.shape
    if np.any(np.isnan(expected)):
        assert np.all(np.isnan(loss))
        if not options.get("label_smoothing"):  # nothing counts: torch's gradient is NaN then, ours 0
            np.testing.assert_array_equal(gradient, 0)
        return
    # torch's log_softmax is x - max - log(sum), of errors of eps * (distance + log n), distances here
    # being below 200; and its loss sums such terms in the dtype.
    rounding = 400 * np.finfo(logits.dtype).eps
    summed = labels.size if options["reduction"] == "sum" else 1
    np.testing.assert_allclose(loss, expected, rtol=rounding, atol=rounding * 2 * summed)
    torch_gradient = x.grad.numpy()
    if not np.all(np.isfinite(torch_gradient)):  # weights that sum to 0
        np.testing.assert_array_equal(np.isfinite(gradient), np.isfinite(torch_gradient))
        return
    scale = max(1, np.max(np.abs(torch_gradient), initial=0))
    np.testing.assert_allclose(gradient, torch_gradient, rtol=rounding, atol=rounding * scale)


def test_torch_functions():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(0, 5, (3, 17, 4))
    for axis in (0, 1, 2):
        t = torch.tensor(x)
        rounding = 100 * np.finfo(float).eps
        np.testing.assert_allclose(fsm.softmax(x, axis), torch.softmax(t, axis).numpy(), rtol=rounding)
        for name in ("log_softmax", "logsumexp"):
            expected = getattr(torch, name)(t, axis).numpy()
            np.testing.assert_allclose(getattr(fsm, name)(x, axis), expected, rtol=rounding, atol=rounding)


def test_torch_tensors_are_array_likes():
    torch = pytest.importorskip("torch")
    t = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    np.testing.assert_array_equal(fsm.softmax(t), fsm.softmax(t.numpy()))
    assert fsm.softmax(t).dtype == np.float32
    with pytest.raises(TypeError, match="grad"):
        fsm.softmax(t.requires_grad_())


def test_fork_with_the_openmp_of_torch_in_use():
    """Both libraries' workers are running; the child needs neither."""
    import os

    torch = pytest.importorskip("torch")
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    from test_threads import output_of

    assert torch
    code = """
        import os
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import numpy as np
        import torch
        import fastsoftmax as fsm
        fsm.set_num_threads(2)
        x = np.random.default_rng(0).normal(size=(500, 1000)).astype("f4")
        torch.softmax(torch.tensor(x), 1)
        expected = fsm.softmax(x)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if np.array_equal(fsm.softmax(x), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        torch.softmax(torch.tensor(x), 1)
        print("done")
    """
    assert output_of(code) == "done"


# ---- ONNX -------------------------------------------------------------------------------


def run_onnx_node(node, inputs):
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Softmax":
        return (fsm.softmax(inputs[0], attributes.get("axis", -1)),)
    if node.op_type == "LogSoftmax":
        return (fsm.log_softmax(inputs[0], attributes.get("axis", -1)),)
    loss = fsm.softmax_cross_entropy(
        inputs[0],
        inputs[1],
        axis=1,
        weight=inputs[2] if len(inputs) > 2 else None,
        ignore_index=attributes.get("ignore_index"),
        reduction=attributes.get("reduction", b"mean").decode(),
    )
    return (loss, fsm.log_softmax(inputs[0], axis=1))[: len(node.output)]


@pytest.mark.filterwarnings("ignore")  # of ONNX's own modules
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "SoftmaxCrossEntropyLoss"])
def test_onnx_node_cases(operator):
    """ONNX's backend tests of each operator, within their own tolerances."""
    pytest.importorskip("onnx")
    names = {"Softmax": "softmax", "LogSoftmax": "logsoftmax", "SoftmaxCrossEntropyLoss": "softmax_cross_entropy_loss"}
    importlib.import_module(f"onnx.backend.test.case.node.{names[operator]}")  # its import collects them
    from onnx.backend.test.case.node import _NodeTestCases

    found = 0
    for test in _NodeTestCases:
        (node, *others) = test.model.graph.node
        if node.op_type != operator or others:
            continue  # the others spell the operator out in smaller ones
        found += 1
        for inputs, outputs in test.data_sets:
            for got, expected in zip(run_onnx_node(node, inputs), outputs, strict=True):
                assert got.dtype == expected.dtype, test.name
                assert got.shape == expected.shape, test.name
                np.testing.assert_allclose(got, expected, rtol=test.rtol, atol=test.atol, err_msg=test.name)
    assert found >= {"Softmax": 7, "LogSoftmax": 7, "SoftmaxCrossEntropyLoss": 30}[operator]


# ---- scikit-learn -----------------------------------------------------------------------


def test_logistic_regression_on_digits():
    """L-BFGS with our loss and gradient ends where LogisticRegression does.

    Both minimise sum(loss) + ||w||**2 / (2 * C), the intercept free; it is strictly convex in w, with a
    smallest curvature of 1 / C. A gradient of norm g is therefore no further than g * C from the optimum.
    """
    C = 0.1
    datasets = pytest.importorskip("sklearn.datasets")
    linear_model = pytest.importorskip("sklearn.linear_model")
    optimize = pytest.importorskip("scipy.optimize")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    features, labels = datasets.load_digits(return_X_y=True)
    features = features / 16
    count, width = features.shape
    probabilities = np.empty((count, 10))

    def objective(flat):
        weights, intercept = flat[:-10].reshape(width, 10), flat[-10:]
        loss, gradient = fsm.softmax_cross_entropy_value_and_grad(
            features @ weights + intercept, labels, reduction="sum", out=probabilities
        )
        in_weights = features.T @ gradient + weights / C
        return loss + (weights**2).sum() / (2 * C), np.concatenate([in_weights.ravel(), gradient.sum(axis=0)])

    tolerance = 1e-3
    options = {"maxiter": 5000, "maxfun": 6000, "gtol": tolerance / 30, "ftol": 0, "maxcor": 30}
    with threadpoolctl.threadpool_limits(1, user_api="blas"):  # matrices too small for more
        start = np.zeros((width + 1) * 10)
        fit = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        theirs = linear_model.LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(features, labels)
    reached = np.linalg.norm(fit.jac)
    assert reached < tolerance
    weights, intercept = fit.x[:-10].reshape(width, 10), fit.x[-10:]
    flat_theirs = np.concatenate([theirs.coef_.T.ravel(), theirs.intercept_])
    value, gradient = objective(flat_theirs)
    distance = np.linalg.norm(weights - theirs.coef_.T)
    assert distance <= C * (tolerance + np.linalg.norm(gradient))
    # Between two points whose gradients are g and h apart by d, a convex function rises by (g + h) * d at most.
    shift = intercept - intercept.mean() - (theirs.intercept_ - theirs.intercept_.mean())
    apart = distance + np.linalg.norm(shift)
    assert abs(fit.fun - value) <= (reached + np.linalg.norm(gradient)) * apart + 1e-12 * value
    np.testing.assert_array_equal((features @ weights + intercept).argmax(1), theirs.predict(features))


# ---- As contenders of the benchmarks ----------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), [((10,), -1), ((6, 5), -1), ((6, 5), 0), ((2, 5, 3, 4), 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reuse_output", [False, True])
@pytest.mark.parametrize("name", ["NumPy", "SciPy", "scikit-learn"])
def test_contender(name, reuse_output, dtype, shape, axis):
    """Right again when called again, the logits as they were, and new results unless told otherwise."""
    adapters, missing = _peers.load((name,), threads=1)
    if missing:
        pytest.skip(missing[name])
    writes_into_out = {"NumPy": set(_timing.FUNCTIONS) - {"logsumexp"}, "scikit-learn": {"softmax", _timing.LOSS}}
    for function in _timing.FUNCTIONS:
        work = _timing.make_work(function, shape, axis, dtype)
        logits = work.logits.copy()
        calls, wrong = _peers.prepare_checked(adapters, work, reuse_output)
        assert not wrong
        if name not in calls:
            assert name != "NumPy", function
            continue
        first, second = calls[name](), calls[name]()
        np.testing.assert_array_equal(work.logits, logits)
        if function == _timing.LOSS:
            assert first[0] == second[0]
            first, second = first[1], second[1]
        np.testing.assert_array_equal(first, second)
        shared = reuse_output and function in writes_into_out.get(name, ())
        assert np.shares_memory(first, second) == shared


def test_gradient_and_hessian_of_plain_numpy():
    """The recipes' baseline computes what they do."""
    logits = np.random.default_rng(0).normal(0, 4, (6, 5))
    labels = np.arange(6) % 5
    for options in ({"factor": 2, "min_hess": 0.1}, {"factor": 1.25}):
        got = _peers.PlainNumPy.softmax_cross_entropy_grad_hess(logits, labels, **options)
        expected = fsm.softmax_cross_entropy_grad_hess(logits, labels, **options)
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)
