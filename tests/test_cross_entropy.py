"""The loss and its derivatives: every option alone and with the others, every label form, every error."""

import re

import numpy as np
import oracle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastsoftmax as fsm
from fastsoftmax import reference

pytestmark = pytest.mark.skipif(not oracle.WIDE_ENOUGH, reason="long double is no wider than double here")

INF, NAN = np.inf, np.nan
LABEL_DTYPES = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param


def batch(dtype, count=7, n=5, seed=0):
    rng = np.random.default_rng([seed, count, n])
    return {
        "logits": rng.normal(0, 4, (count, n)).astype(dtype),
        "labels": rng.integers(0, n, count),
        "soft": rng.dirichlet(np.ones(n), count).astype(dtype),
        "weight": rng.uniform(0.5, 2, n).astype(dtype),
        "sample_weight": rng.uniform(0.5, 2, count),
        "grad_loss": rng.normal(size=count),
    }


def check(logits, labels, **options):
    """Loss and gradient of the three functions are the oracle's, within the bounds derived here."""
    logits = np.asarray(logits)
    dtype = logits.dtype.type
    grad_options = {"grad_loss": options.pop("grad_loss")} if "grad_loss" in options else {}
    exact = oracle.cross_entropy(logits, labels, **options, **grad_options)
    loss, gradient = fsm.softmax_cross_entropy_value_and_grad(logits, labels, **options, **grad_options)
    assert loss.dtype == gradient.dtype == dtype
    info = np.finfo(dtype)
    # Every term of a row's loss, target * log-probability, is a product of at most five rounded
    # factors (1 - smoothing, smoothing / n, class weight, their product, the logarithm) of which each
    # is off by eps / 2 at most, the logarithm by 2 ULP; the row's weight and the result round too.
    # All of it is below 6 eps of the sum of the terms' magnitudes. z * logsumexp**2 doubles the
    # logarithm's share. Means and sums add their rows in double precision: nothing beside this.
    with np.errstate(invalid="ignore"):
        bound = 6 * info.eps * exact.terms + info.smallest_subnormal
        close = np.abs(loss - exact.loss) <= bound
    assert np.all(close | (np.isnan(loss) & np.isnan(exact.loss)) | (loss == exact.loss)), (loss, exact.loss)
    # The gradient's p is within 2 ULP, its factors as above, and their difference rounds once more.
    with np.errstate(invalid="ignore"):
        bound = 6 * info.eps * exact.gradient_terms + 2 * info.smallest_subnormal
        close = np.abs(gradient - exact.gradient) <= bound
    assert np.all(close | (np.isnan(gradient) & np.isnan(exact.gradient))), (gradient, exact.gradient)
    np.testing.assert_array_equal(fsm.softmax_cross_entropy(logits, labels, **options), loss)
    np.testing.assert_array_equal(fsm.softmax_cross_entropy_grad(logits, labels, **options, **grad_options), gradient)
    return loss, gradient


# ---- Each option, alone and with the others ---------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 16, 31, 32, 33, 100, 1000])
@pytest.mark.usefixtures("isa")
def test_every_option_alone(n, reduction, dtype):
    data = batch(dtype, count=21, n=n)
    x, y, soft = data["logits"], data["labels"], data["soft"]
    options = [
        {},
        {"weight": data["weight"]},
        {"sample_weight": data["sample_weight"]},
        {"ignore_index": int(y[0])},
        {"ignore_index": -100},
        {"label_smoothing": 0.3},
        {"label_smoothing": 1.0},
        {"z_loss": 0.25},
        {"grad_loss": -2.5},
    ]
    for labels in (y, soft, np.eye(n, dtype=dtype)[y]):
        plain, plain_gradient = check(x, labels, reduction=reduction)
        for option in options:
            if labels is not y and "ignore_index" in option:
                continue
            loss, gradient = check(x, labels, reduction=reduction, **option)
            if n == 1 or option in ({}, {"ignore_index": -100}):
                continue
            # The option did something.
            assert np.array_equal(loss, plain) == ("grad_loss" in option)
            assert not np.array_equal(gradient, plain_gradient)


finite = st.floats(-60, 60, width=32)


@st.composite
def problems(draw):
    """Logits, labels and any combination of options."""
    count, n = draw(st.integers(0, 9)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    logits = draw(hnp.arrays(dtype, (count, n), elements=finite))
    weights = st.one_of(st.just(0.0), st.floats(-2, 4, width=16), st.floats(0.25, 4, width=16))
    options = {"reduction": draw(st.sampled_from(["none", "sum", "mean"]))}
    if draw(st.booleans()):
        labels = draw(hnp.arrays(draw(st.sampled_from(LABEL_DTYPES)), count, elements=st.integers(0, n - 1)))
        if draw(st.booleans()):
            options["ignore_index"] = draw(st.integers(-3, n))
    else:
        labels = draw(hnp.arrays(dtype, (count, n), elements=st.floats(0, 1, width=16)))
    if draw(st.booleans()):
        # Positive: with weights of both signs a mean may divide by next to nothing.
        options["weight"] = draw(hnp.arrays(dtype, n, elements=st.floats(0.125, 4, width=16)))
    if draw(st.booleans()):
        signs = weights if options["reduction"] != "mean" else st.one_of(st.just(0.0), st.floats(0.125, 4, width=16))
        options["sample_weight"] = draw(hnp.arrays(np.float64, count, elements=signs))
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    if draw(st.booleans()):
        options["z_loss"] = draw(st.sampled_from([1e-4, 0.5, -0.25]))
    if draw(st.booleans()):
        shape = count if options["reduction"] == "none" and draw(st.booleans()) else ()
        options["grad_loss"] = draw(hnp.arrays(np.float64, shape, elements=st.floats(-4, 4, width=16)))
    return logits, labels, options


@given(problems())
def test_options_in_combination(problem):
    logits, labels, options = problem
    check(logits, labels, **options)


@given(problems(), st.randoms(use_true_random=False))
def test_ignoring_a_row_equals_deleting_it(problem, random):
    """By ignore_index or by a weight of 0, whatever the row's logits hold."""
    logits, labels, options = problem
    if labels.ndim == 2:
        options.pop("ignore_index", None)
    count, n = logits.shape
    gone = np.array([random.random() < 0.4 for _ in range(count)], bool)
    kept = ~gone
    ignored = options.get("ignore_index")
    by_weight = labels.ndim == 2 or ignored is None or 0 <= ignored < 128 <= n or random.random() < 0.5
    fewer = dict(options)
    for name in ("sample_weight", "grad_loss"):
        if np.ndim(options.get(name, 0)):
            fewer[name] = options[name][kept]
    expected = fsm.softmax_cross_entropy_value_and_grad(logits[kept], labels[kept], **fewer)
    x, y, more = logits.copy(), labels.astype(np.int64) if labels.ndim == 1 else labels.copy(), dict(options)
    x[gone] = random.choice([NAN, INF, -INF, 3e38])
    if by_weight:
        weights = np.array(options.get("sample_weight", np.ones(count)), float)
        weights[gone] = 0
        more["sample_weight"] = weights
        if labels.ndim == 2:
            y[gone] = random.choice([NAN, 0.5])
    else:
        y[gone] = ignored
    loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, y, **more)
    if options["reduction"] == "none":
        assert np.all(loss[gone] == 0)
        loss = loss[kept]
    assert np.all(gradient[gone] == 0)
    # Adding up other rows' zeros rounds nothing; means divide by the same sum of weights up to the
    # order it is added in, which is double precision's rounding.
    eps = np.finfo(logits.dtype).eps
    np.testing.assert_allclose(loss, expected[0], rtol=2 * eps, atol=0)
    np.testing.assert_allclose(gradient[kept], expected[1], rtol=2 * eps, atol=0)


@pytest.mark.parametrize("name", ["weight", "sample_weight", "label_smoothing", "z_loss", "grad_loss"])
def test_gradient_by_finite_differences(name):
    """Central differences of the loss; their error is h**2 / 6 times the third derivative, and eps / h."""
    data = batch(np.float64, count=4, n=6)
    options = {
        "weight": {"weight": data["weight"]},
        "sample_weight": {"sample_weight": data["sample_weight"]},
        "label_smoothing": {"label_smoothing": 0.2},
        "z_loss": {"z_loss": 0.3},
        "grad_loss": {"grad_loss": 1.75},
    }[name]
    scale = options.pop("grad_loss", 1.0)
    h = 1e-4
    for labels in (data["labels"], data["soft"]):
        for reduction in ("sum", "mean"):
            x = data["logits"].copy()
            got = fsm.softmax_cross_entropy_grad(x, labels, grad_loss=scale, reduction=reduction, **options)
            difference = np.empty_like(got)
            for i in np.ndindex(x.shape):
                value = x[i]
                x[i] = value + h
                above = fsm.softmax_cross_entropy(x, labels, reduction=reduction, **options)
                x[i] = value - h
                below = fsm.softmax_cross_entropy(x, labels, reduction=reduction, **options)
                x[i] = value
                difference[i] = scale * (above - below) / (2 * h)
            # Third derivatives of the loss are below 1 a unit of weight (of a row: 2), of the z-loss
            # below 2 * z * (|lse| + 3); the loss is below 100 and its rounding error below 100 * eps.
            bound = 2 * 2 * 20 * h**2 / 6 + 100 * np.finfo(np.float64).eps / h
            np.testing.assert_allclose(got, difference, rtol=0, atol=bound)


# ---- Rules one by one -------------------------------------------------------------------


def test_default_is_the_mean(dtype):
    data = batch(dtype)
    each = fsm.softmax_cross_entropy(data["logits"], data["labels"], reduction="none")
    mean = fsm.softmax_cross_entropy(data["logits"], data["labels"])
    assert mean == fsm.softmax_cross_entropy(data["logits"], data["labels"], reduction="mean")
    # Two roundings to the dtype: of the rows' losses, and of the mean.
    assert abs(mean - each.astype(np.float64).mean()) <= np.finfo(dtype).eps * mean


def test_mean_divides_by_the_weights_that_count(dtype):
    """Of indices: class weight times sample weight; of probabilities: sample weight."""
    x = np.zeros((3, 2), dtype)  # every log-probability is -log(2)
    weight, sample_weight = np.array([1, 3], dtype), np.array([1.0, 2.0, 4.0])
    labels = np.array([0, 1, 0])
    loss = fsm.softmax_cross_entropy(x, labels, weight=weight, sample_weight=sample_weight)
    log2 = np.log(2)
    np.testing.assert_allclose(loss, log2, rtol=4 * np.finfo(dtype).eps)
    one_hot = np.eye(2, dtype=dtype)[labels]
    loss = fsm.softmax_cross_entropy(x, one_hot, weight=weight, sample_weight=sample_weight)
    np.testing.assert_allclose(loss, (1 + 3 * 2 + 4) / 7 * log2, rtol=4 * np.finfo(dtype).eps)
    loss = fsm.softmax_cross_entropy(x, labels, sample_weight=sample_weight, ignore_index=1)
    np.testing.assert_allclose(loss, log2, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("power", [-1000, -160, -30, 30, 160, 1000])
def test_mean_with_weights_beyond_the_range_of_the_logits(dtype, power):
    """The mean is the same for all multiples of the weights."""
    data = batch(dtype)
    sample_weight = np.arange(1.0, 8.0)
    for name, weights in (("weight", np.asarray(data["weight"], np.float64)), ("sample_weight", sample_weight)):
        plain = fsm.softmax_cross_entropy_value_and_grad(data["logits"], data["labels"], **{name: weights})
        scaled = fsm.softmax_cross_entropy_value_and_grad(
            data["logits"], data["labels"], **{name: np.ldexp(weights, power)}
        )
        np.testing.assert_array_equal(scaled[0], plain[0])
        np.testing.assert_array_equal(scaled[1], plain[1])


@pytest.mark.parametrize("power", [-40, 40])
def test_mean_over_probabilities_is_not_divided_by_class_weights(dtype, power):
    data = batch(dtype)
    weight = np.asarray(data["weight"], dtype)
    plain = fsm.softmax_cross_entropy_value_and_grad(data["logits"], data["soft"], weight=weight)
    scaled = fsm.softmax_cross_entropy_value_and_grad(data["logits"], data["soft"], weight=np.ldexp(weight, power))
    np.testing.assert_array_equal(scaled[0], np.ldexp(plain[0], power))
    np.testing.assert_array_equal(scaled[1], np.ldexp(plain[1], power))


def test_mean_beside_a_huge_weight_that_does_not_count(dtype):
    x = np.array([[1, 2], [3, 1]], dtype)
    alone = fsm.softmax_cross_entropy_value_and_grad(x[:1], [0])
    with np.errstate(all="raise"):
        for sample_weight in ([1, 1e300], [1e-8, 1e36], [2.0**-10, 2.0**1000]):
            loss, gradient = fsm.softmax_cross_entropy_value_and_grad(
                x, [0, -100], ignore_index=-100, sample_weight=sample_weight
            )
            np.testing.assert_allclose(loss, alone[0], rtol=4 * np.finfo(dtype).eps)
            np.testing.assert_allclose(gradient[:1], alone[1], rtol=4 * np.finfo(dtype).eps)
        for unused in (1e35, 1e300):
            loss = fsm.softmax_cross_entropy(x[:1], [0], weight=[1e-10, unused])
            np.testing.assert_allclose(loss, alone[0], rtol=4 * np.finfo(dtype).eps)


def test_mean_over_nothing(dtype):
    """NaN, as in torch; a gradient of 0; and the sum is 0."""
    x = np.full((3, 4), NAN, dtype)
    for options in (
        {"labels": np.full(3, -1), "ignore_index": -1},
        {"labels": np.zeros(3, int), "sample_weight": np.zeros(3)},
        {"labels": np.full((3, 4), 0.25), "sample_weight": np.zeros(3)},
        {"labels": np.zeros(3, int), "weight": np.zeros(4)},
    ):
        labels = options.pop("labels")
        loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, labels, **options)
        assert np.isnan(loss)
        assert np.all(gradient == 0)
        assert np.all(fsm.softmax_cross_entropy_grad(x, labels, **options) == 0)
        assert fsm.softmax_cross_entropy(x, labels, reduction="sum", **options) == 0
        assert np.all(fsm.softmax_cross_entropy(x, labels, reduction="none", **options) == 0)


def test_negative_weights(dtype):
    data = batch(dtype)
    for reduction in ("none", "sum"):
        plain = fsm.softmax_cross_entropy_value_and_grad(data["logits"], data["labels"], reduction=reduction)
        turned = fsm.softmax_cross_entropy_value_and_grad(
            data["logits"], data["labels"], sample_weight=-np.ones(7), reduction=reduction
        )
        np.testing.assert_array_equal(turned[0], -plain[0])
        np.testing.assert_array_equal(turned[1], -plain[1])
    check(data["logits"], data["labels"], weight=-data["weight"], reduction="none")


def test_ignored_index_may_be_a_class(dtype):
    x = np.zeros((4, 3), dtype)
    loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, [0, 1, 2, 1], ignore_index=1, reduction="none")
    np.testing.assert_array_equal(loss == 0, [False, True, False, True])
    np.testing.assert_array_equal(np.all(gradient == 0, axis=1), [False, True, False, True])


def test_zero_probability_of_an_impossible_class(dtype):
    """0 * -inf counts as 0, in the loss; the gradient is p - y all the same."""
    x = np.array([[0, -INF, 0], [1, -INF, -INF]], dtype)
    y = np.array([[0.5, 0, 0.5], [1, 0, 0]], dtype)
    loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, y, reduction="none")
    assert oracle.ulp_error(loss[0], np.log(oracle.Wide(2)), dtype) <= 2
    assert loss[1] == 0
    assert np.all(np.abs(gradient) <= 2 * np.finfo(dtype).eps)
    check(x, y, reduction="sum")


def test_probable_class_of_a_logit_of_minus_infinity(dtype):
    x = np.array([[0, -INF, 0]], dtype)
    for labels, options in (
        ([1], {}),
        (np.array([[0.5, 0.25, 0.25]], dtype), {}),
        ([0], {"label_smoothing": 0.1}),
        (np.array([[1, 0, 0]], dtype), {"label_smoothing": 0.1}),
    ):
        for reduction in ("none", "sum", "mean"):
            loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, labels, reduction=reduction, **options)
            assert np.all(loss == INF)
            assert np.all(np.isfinite(gradient))


def test_special_logits(dtype):
    """Rows that count follow the table of log_softmax."""
    x = np.array([[NAN, 0, 0], [INF, 0, 0], [-INF, -INF, -INF], [0, 0, 0]], dtype)
    for labels in (np.zeros(4, int), np.full((4, 3), 1 / 3)):
        for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
            loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, labels, reduction="none", **options)
            assert np.all(np.isnan(loss[:3]))
            assert np.all(np.isnan(gradient[:3]))
            assert np.all(np.isfinite(loss[3]))
            assert np.all(np.isfinite(gradient[3]))


def test_z_loss_formula(dtype):
    """c * logsumexp**2 for each row that counts, times its weight, before the reduction."""
    data = batch(dtype)
    x, y, w, s = data["logits"], data["labels"], data["weight"], data["sample_weight"]
    squares = oracle.rows(x).logsumexp ** 2
    for labels, factors in ((y, w[y].astype(float) * s), (data["soft"], s)):
        kwargs = {"weight": w, "sample_weight": s, "reduction": "none"}
        without = fsm.softmax_cross_entropy(x, labels, **kwargs).astype(float)
        added = fsm.softmax_cross_entropy(x, labels, z_loss=0.5, **kwargs) - without
        bound = 6 * np.finfo(dtype).eps * (np.abs(without) + 0.5 * factors * squares)
        assert np.all(np.abs(added - 0.5 * factors * squares) <= bound)


def test_grad_loss(dtype):
    data = batch(dtype)
    x, y, upstream = data["logits"], data["labels"], data["grad_loss"]
    each = fsm.softmax_cross_entropy_grad(x, y, reduction="none").astype(float)
    got = fsm.softmax_cross_entropy_grad(x, y, reduction="none", grad_loss=upstream)
    # One more rounding, of the product, in each of two terms.
    bound = 2 * np.finfo(dtype).eps * np.abs(upstream)[:, None]
    assert np.all(np.abs(got - each * upstream[:, None]) <= bound)
    for scalar in (2, 2.0, np.float32(2), np.array(2.0)):
        for reduction in ("none", "sum", "mean"):
            once = fsm.softmax_cross_entropy_grad(x, y, reduction=reduction)
            twice = fsm.softmax_cross_entropy_grad(x, y, reduction=reduction, grad_loss=scalar)
            np.testing.assert_array_equal(twice, 2 * once)
    loss, _ = fsm.softmax_cross_entropy_value_and_grad(x, y, grad_loss=2)
    assert loss == fsm.softmax_cross_entropy(x, y)
    ignored = np.where(np.arange(7) == 3, NAN, upstream)
    got = fsm.softmax_cross_entropy_grad(
        x, np.where(np.arange(7) == 3, -1, y), reduction="none", grad_loss=ignored, ignore_index=-1
    )
    assert np.all(got[3] == 0)
    assert np.all(np.isfinite(got))


@pytest.mark.usefixtures("exact_values")
@pytest.mark.parametrize("n", [3, 200, 5000, 20_000])
def test_distances_whose_sum_is_infinite(n, dtype):
    """Smoothing gives each class a small target: the loss is finite."""
    x = np.full((1, n), -0.9 * np.finfo(dtype).max, dtype)
    x[0, 0] = np.finfo(dtype).max
    exact = oracle.Wide(0.1) * (n - 1) / n * (oracle.Wide(x[0, 0]) - oracle.Wide(x[0, 1]))
    got = fsm.softmax_cross_entropy(x, [0], label_smoothing=0.1)
    assert abs(got / exact - 1) <= 6 * np.finfo(dtype).eps


# ---- Axes, dtypes and layouts of labels -------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.usefixtures("isa")
def test_axis(axis, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, 5)).astype(dtype)
    n = x.shape[axis]
    shape = np.delete(x.shape, axis)
    labels, weight = rng.integers(0, n, shape), rng.uniform(1, 2, n)
    sample_weight = rng.uniform(1, 2, shape)
    soft = np.moveaxis(rng.dirichlet(np.ones(n), shape), -1, axis).astype(dtype)
    rows = np.ascontiguousarray(np.moveaxis(x, axis, -1)).reshape(-1, n)
    soft_rows = np.ascontiguousarray(np.moveaxis(soft, axis, -1)).reshape(-1, n)
    for y, y_rows in ((labels, labels.ravel()), (soft, soft_rows)):
        for reduction in ("none", "sum", "mean"):
            loss, gradient = fsm.softmax_cross_entropy_value_and_grad(
                x, y, axis, weight=weight, sample_weight=sample_weight, reduction=reduction
            )
            expected = fsm.softmax_cross_entropy_value_and_grad(
                rows, y_rows, weight=weight, sample_weight=sample_weight.ravel(), reduction=reduction
            )
            np.testing.assert_array_equal(np.ravel(loss), np.ravel(expected[0]))
            np.testing.assert_array_equal(np.moveaxis(gradient, axis, -1).reshape(-1, n), expected[1])
            assert np.shape(loss) == (tuple(shape) if reduction == "none" else ())
    gradient, hessian = fsm.softmax_cross_entropy_grad_hess(x, labels, axis, sample_weight=sample_weight)
    expected = fsm.softmax_cross_entropy_grad_hess(rows, labels.ravel(), sample_weight=sample_weight.ravel())
    np.testing.assert_array_equal(np.moveaxis(gradient, axis, -1).reshape(-1, n), expected[0])
    np.testing.assert_array_equal(np.moveaxis(hessian, axis, -1).reshape(-1, n), expected[1])


def test_one_row(dtype):
    x = np.array([1, 2, 3], dtype)
    for labels in (1, np.int8(1), np.array(1), np.uint64(1)):
        loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, labels, sample_weight=2.0, reduction="none")
        assert type(loss) is dtype
        assert gradient.shape == (3,)
        np.testing.assert_array_equal(loss, 2 * fsm.softmax_cross_entropy(x, labels))


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES)
@pytest.mark.parametrize("order", ["=", "swapped"])
@pytest.mark.usefixtures("isa")
def test_label_dtypes(label_dtype, order, layout, dtype):
    data = batch(dtype, count=40, n=7)
    x = data["logits"]
    labels = data["labels"].astype(label_dtype)
    if order == "swapped":
        labels = labels.astype(labels.dtype.newbyteorder())
    labels = layout(labels)
    plain = data["labels"]
    for a, b in zip(
        fsm.softmax_cross_entropy_value_and_grad(x, labels),
        fsm.softmax_cross_entropy_value_and_grad(x, plain),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(fsm.selected_log_softmax(x, labels), fsm.selected_log_softmax(x, plain))
    ignored = fsm.softmax_cross_entropy(x, labels, ignore_index=3, reduction="none")
    np.testing.assert_array_equal(ignored == 0, plain == 3)


@pytest.mark.parametrize("label_dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, np.bool_])
def test_soft_label_dtypes(label_dtype, layout, dtype):
    """Exact in all of them."""
    data = batch(dtype)
    one_hot = np.eye(5)[data["labels"]]
    labels = layout(one_hot.astype(label_dtype))
    for options in ({}, {"label_smoothing": 0.1, "weight": data["weight"]}):
        for a, b in zip(
            fsm.softmax_cross_entropy_value_and_grad(data["logits"], labels, **options),
            fsm.softmax_cross_entropy_value_and_grad(data["logits"], one_hot, **options),
            strict=True,
        ):
            assert a.dtype == dtype
            np.testing.assert_array_equal(a, b)
    counts = np.array([[2, 0, 1, 0, 0]] * 7, label_dtype)
    if label_dtype is not np.bool_:
        check(data["logits"], counts, reduction="none")


def test_labels_as_lists(dtype):
    data = batch(dtype)
    assert fsm.softmax_cross_entropy(data["logits"], data["labels"].tolist()) == fsm.softmax_cross_entropy(
        data["logits"], data["labels"]
    )
    assert fsm.softmax_cross_entropy(data["logits"].tolist(), data["labels"]).dtype == np.float64


def test_more_classes_than_a_small_label_type_counts(dtype):
    """Label 200 in uint8, of 300 classes; and an ignore_index no int8 can hold."""
    x = np.random.default_rng(0).normal(size=(2, 300)).astype(dtype)
    expected = fsm.softmax_cross_entropy(x, [200, 3], reduction="none")
    small = np.array([200, 3], np.uint8)
    np.testing.assert_array_equal(fsm.softmax_cross_entropy(x, small, reduction="none"), expected)
    for ignore_index in (-100, 456, 2**40, -(2**62)):
        for label_dtype in (np.int8, np.uint8, np.int64, np.uint64):
            labels = np.array([100, 3], label_dtype)
            got = fsm.softmax_cross_entropy(x, labels, ignore_index=ignore_index, reduction="none")
            np.testing.assert_array_equal(got, fsm.softmax_cross_entropy(x, [100, 3], reduction="none"))


def test_labels_and_ignore_index_beyond_int64(dtype):
    """Of uint64; and the ends of both 64-bit types."""
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(dtype)
    for ignore_index, label_dtype in ((2**64 - 1, np.uint64), (2**63, np.uint64), (-(2**63), np.int64)):
        labels = np.array([1, ignore_index], label_dtype)
        loss = fsm.softmax_cross_entropy(x, labels, ignore_index=ignore_index, reduction="none")
        assert loss[0] == fsm.softmax_cross_entropy(x[:1], [1])
        assert loss[1] == 0
    for label in (2**64 - 1, 2**63 + 5):
        with pytest.raises(IndexError, match=rf"labels\[1\] is {label}"):
            fsm.softmax_cross_entropy(x, np.array([0, label], np.uint64), ignore_index=-1)
    for ignore_index in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match="ignore_index"):
            fsm.softmax_cross_entropy(x, [0, 1], ignore_index=ignore_index)


# ---- Errors -----------------------------------------------------------------------------


BAD_LABELS = [5, -1, 127, -128, 2**31, -(2**31), 2**32, 2**63 - 1, -(2**63), 2**63, 2**64 - 1]
BAD_LABELS_OF_DTYPES = [
    (label_dtype, bad)
    for label_dtype in LABEL_DTYPES
    for bad in BAD_LABELS
    if np.iinfo(label_dtype).min <= bad <= np.iinfo(label_dtype).max
]


@pytest.mark.parametrize(("label_dtype", "bad"), BAD_LABELS_OF_DTYPES)
@pytest.mark.parametrize("where", [0, 3, 6])
@pytest.mark.parametrize("step", [1, 2])
def test_label_out_of_range(label_dtype, bad, where, step, dtype):
    data = batch(dtype)
    labels = np.repeat(data["labels"].astype(label_dtype), step)[::step]
    labels[where] = bad
    x, out = data["logits"].copy(), np.full_like(data["logits"], 7)
    hess_out = out.copy()
    picks = np.stack([data["labels"].astype(label_dtype), labels], axis=1)
    row_out = np.full(7, 7, dtype)
    two_out = np.full((7, 2), 7, dtype)
    for call in (
        lambda: fsm.softmax_cross_entropy(x, labels),
        lambda: fsm.softmax_cross_entropy(x, labels, ignore_index=-100, reduction="sum"),
        lambda: fsm.softmax_cross_entropy_grad(x, labels, out=out),
        lambda: fsm.softmax_cross_entropy_grad(x, labels, out=x),
        lambda: fsm.softmax_cross_entropy_value_and_grad(x, labels, out=out, reduction="none"),
        lambda: fsm.softmax_cross_entropy_grad_hess(x, labels, grad_out=out, hess_out=hess_out),
        lambda: fsm.selected_log_softmax(x, labels, out=row_out),
        lambda: fsm.selected_log_softmax(x, picks, out=two_out),
    ):
        with pytest.raises(IndexError) as error:
            call()
        message = str(error.value)
        assert str(bad) in message  # the value
        assert str(where) in message  # the position
        assert "5" in message  # the range
        np.testing.assert_array_equal(x, data["logits"])
        for written in (out, hess_out, row_out, two_out):
            assert np.all(written == 7)


def test_label_out_of_range_in_an_ignored_row(dtype):
    """A weight of 0 does not excuse a label that ignore_index does not name; it is named by its own position."""
    x = np.zeros((2, 3, 4), dtype)
    labels = np.zeros((2, 4), int)
    labels[1, 2] = 9
    with pytest.raises(IndexError, match=r"1, 2.*9|9.*1, 2"):
        fsm.softmax_cross_entropy(x, labels, 1)
    assert np.isfinite(fsm.softmax_cross_entropy(x, labels, 1, ignore_index=9))


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (np.zeros(7), TypeError),  # floating-point class indices
        (np.zeros(7, bool), TypeError),
        (np.zeros(6, int), ValueError),
        (np.zeros((7, 1), int), ValueError),
        (np.zeros((1, 7), int), ValueError),
        (np.zeros((7, 4)), ValueError),
        (np.zeros((5, 7)), ValueError),
        (np.zeros((7, 5, 1)), ValueError),
        (0, ValueError),
        (np.zeros(7, complex), TypeError),
        (np.zeros((7, 5), complex), TypeError),
        (np.zeros(7, object), TypeError),
        (np.zeros((7, 5), object), TypeError),
        (["a"] * 7, TypeError),
        (None, (TypeError, ValueError)),
    ],
    ids=lambda value: getattr(value, "__name__", None) or f"{np.asarray(value).dtype}{np.shape(value)}",
)
def test_wrong_labels(labels, error, dtype):
    x = batch(dtype)["logits"]
    out = np.full_like(x, 7)
    for call in (
        lambda: fsm.softmax_cross_entropy(x, labels),
        lambda: fsm.softmax_cross_entropy_grad(x, labels, out=out),
        lambda: fsm.softmax_cross_entropy_value_and_grad(x, labels, out=out),
        lambda: fsm.softmax_cross_entropy_grad_hess(x, labels, grad_out=out),
    ):
        with pytest.raises(error, match="label"):
            call()
        assert np.all(out == 7)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"weight": np.ones(4)}, ValueError),
        ({"weight": np.ones((1, 5))}, ValueError),
        ({"weight": 1.0}, ValueError),
        ({"weight": np.ones((7, 5))}, ValueError),
        ({"weight": np.ones(5, complex)}, TypeError),
        ({"weight": ["a"] * 5}, TypeError),
        ({"sample_weight": np.ones(6)}, ValueError),
        ({"sample_weight": np.ones((7, 1))}, ValueError),
        ({"sample_weight": 1.0}, ValueError),
        ({"sample_weight": np.ones(7, complex)}, TypeError),
        ({"label_smoothing": -0.1}, ValueError),
        ({"label_smoothing": 1.1}, ValueError),
        ({"label_smoothing": NAN}, ValueError),
        ({"label_smoothing": "0.1"}, TypeError),
        ({"label_smoothing": 0.1j}, TypeError),
        ({"z_loss": "1"}, TypeError),
        ({"ignore_index": 1.5}, TypeError),
        ({"ignore_index": "1"}, TypeError),
        ({"reduction": "average"}, ValueError),
        ({"reduction": None}, (TypeError, ValueError)),
        ({"reduction": "Mean"}, ValueError),
    ],
    ids=str,
)
def test_wrong_options(options, error, dtype):
    data = batch(dtype)
    name = next(iter(options))
    out = np.full_like(data["logits"], 7)
    for call in (
        lambda: fsm.softmax_cross_entropy(data["logits"], data["labels"], **options),
        lambda: fsm.softmax_cross_entropy_grad(data["logits"], data["labels"], out=out, **options),
        lambda: fsm.softmax_cross_entropy_value_and_grad(data["logits"], data["labels"], out=out, **options),
    ):
        with pytest.raises(error, match=name):
            call()
        assert np.all(out == 7)
    if "weight" in name:
        with pytest.raises(error, match=name):
            fsm.softmax_cross_entropy_grad_hess(data["logits"], data["labels"], grad_out=out, **options)
        assert np.all(out == 7)


@pytest.mark.parametrize(
    ("shape", "index", "named"),
    [
        ((2, 3), [0, 9], "index[1] is 9"),
        ((2, 3), [[0], [9]], "index[1, 0] is 9"),
        ((3,), 9, "index is 9"),
        ((2, 0), [0, 9], "index[0] is 0"),
    ],
)
def test_wrong_index_is_named_by_its_position(shape, index, named):
    with pytest.raises(IndexError, match=re.escape(f"{named}, expected one in [0, {shape[-1]})")):
        fsm.selected_log_softmax(np.zeros(shape), index)


def test_loss_alone_has_no_grad_loss():
    with pytest.raises(TypeError, match=r"softmax_cross_entropy\(\) got an unexpected keyword argument 'grad_loss'"):
        fsm.softmax_cross_entropy(np.zeros((2, 3)), [0, 1], grad_loss=1)


def test_ignore_index_with_probabilities(dtype):
    data = batch(dtype)
    with pytest.raises((TypeError, ValueError), match="ignore_index"):
        fsm.softmax_cross_entropy(data["logits"], data["soft"], ignore_index=1)


@pytest.mark.parametrize(
    ("grad_loss", "reduction"),
    [(np.ones(7), "mean"), (np.ones(7), "sum"), (np.ones(6), "none"), (np.ones((7, 1)), "none"), (np.ones(1), "mean")],
)
def test_grad_loss_of_a_wrong_shape(grad_loss, reduction, dtype):
    data = batch(dtype)
    with pytest.raises(ValueError, match="grad_loss"):
        fsm.softmax_cross_entropy_grad(data["logits"], data["labels"], grad_loss=grad_loss, reduction=reduction)


def test_logits_without_a_dimension():
    for call in (
        lambda: fsm.softmax_cross_entropy(1.0, 0),
        lambda: fsm.softmax_cross_entropy_grad(np.array(1.0), 0),
        lambda: fsm.softmax_cross_entropy_value_and_grad(1.0, 0),
        lambda: fsm.softmax_cross_entropy_grad_hess(1.0, 0),
        lambda: fsm.selected_log_softmax(1.0, 0),
        lambda: fsm.softmax_jacobian(1.0),
    ):
        with pytest.raises(ValueError, match="dimension"):
            call()


# ---- Gradient and Hessian for boosting --------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 10, 33, 1000])
@pytest.mark.usefixtures("isa")
def test_grad_hess(n, dtype):
    data = batch(dtype, count=19, n=n)
    x, labels, soft = data["logits"], data["labels"], data["soft"]
    p = oracle.rows(x).softmax
    weight, sample_weight = data["weight"], data["sample_weight"]
    one_hot = np.eye(n)[labels]
    cases = [
        (labels, one_hot, {}, np.ones(19)),
        (labels, one_hot, {"weight": weight}, weight[labels]),
        (labels, one_hot, {"sample_weight": sample_weight}, sample_weight),
        (labels, one_hot, {"weight": weight, "sample_weight": sample_weight}, weight[labels] * sample_weight),
        (soft, soft, {"sample_weight": sample_weight}, sample_weight),
        (one_hot.astype(bool), one_hot, {}, np.ones(19)),
    ]
    info = np.finfo(dtype)
    for given_labels, y, options, w in cases:
        w = w[:, None].astype(oracle.Wide)
        for factor, min_hess in ((1.0, 0.0), (2.0, 1e-16), (n / (n - 1) if n > 1 else 1.0, 0.125)):
            gradient, hessian = fsm.softmax_cross_entropy_grad_hess(
                x, given_labels, factor=factor, min_hess=min_hess, **options
            )
            assert gradient.dtype == hessian.dtype == dtype
            # p within 2 ULP (2 eps), the difference, the weight and the product half an eps each.
            bound = w * (3 * info.eps * p + 2 * info.eps * y) + 2 * info.eps * np.abs(w * (p - y))
            assert np.all(np.abs(gradient - w * (p - y)) <= bound + 2 * info.smallest_subnormal)
            # Of 1 - p the error is p's own, 2 eps of p, and a rounding; then three products.
            exact = np.maximum(factor * p * (1 - p) * w, min_hess)
            bound = factor * w * p * info.eps * (5 * (1 - p) + 3 * p) + info.eps * exact
            assert np.all(np.abs(hessian - exact) <= bound + 4 * info.smallest_subnormal)
            assert np.all(hessian >= dtype(min_hess))


def test_grad_hess_of_rows_without_weight(dtype):
    """As if ignored: no gradient, the least Hessian, whatever the logits hold."""
    x = np.array([[NAN, 1, 2], [INF, 0, 0], [1, 2, 3]], dtype)
    gradient, hessian = fsm.softmax_cross_entropy_grad_hess(x, [0, 1, 2], sample_weight=[0, 0, 1], min_hess=0.25)
    assert np.all(gradient[:2] == 0)
    assert np.all(hessian[:2] == 0.25)
    expected = fsm.softmax_cross_entropy_grad_hess(x[2:], [2], min_hess=0.25)
    np.testing.assert_array_equal(gradient[2:], expected[0])
    np.testing.assert_array_equal(hessian[2:], expected[1])
    gradient, hessian = fsm.softmax_cross_entropy_grad_hess(x, [0, 0, 1], weight=[0, 1, 1])
    assert np.all(gradient[:2] == 0)
    assert np.all(hessian[:2] == 0)


def test_grad_hess_of_special_rows(dtype):
    x = np.array([[NAN, 1, 2], [INF, 0, 0], [-INF] * 3, [0, -INF, 0]], dtype)
    gradient, hessian = fsm.softmax_cross_entropy_grad_hess(x, [0, 1, 2, 1])
    assert np.all(np.isnan(gradient[:3]))
    assert np.all(np.isnan(hessian[:3]))
    assert gradient[3, 1] == -1
    assert hessian[3, 1] == 0


@pytest.mark.parametrize("n", [2, 8, 40, 1000])
@pytest.mark.usefixtures("isa")
def test_infinite_hessians(n, dtype):
    """factor * p * (1 - p) * w is infinite where w is, or where the product is too large; other rows are as ever."""
    x = np.random.default_rng(n).normal(size=(5, n)).astype(dtype)
    labels = np.zeros(5, int)
    alone = fsm.softmax_cross_entropy_grad_hess(x, labels, factor=1e10)
    weight = np.array([1, INF, -INF, 1e300, 1])
    gradient, hessian = fsm.softmax_cross_entropy_grad_hess(x, labels, sample_weight=weight, factor=1e10, min_hess=1e-3)
    assert np.all(hessian[[1, 3]] == INF)
    assert np.all(hessian[2] == dtype(1e-3))
    np.testing.assert_array_equal(np.sign(gradient[1, :2]), [-1, 1])
    np.testing.assert_array_equal(gradient[1], -gradient[2])
    for row in (0, 4):
        np.testing.assert_array_equal(gradient[row], alone[0][row])
        np.testing.assert_array_equal(hessian[row], np.maximum(alone[1][row], dtype(1e-3)))


@pytest.mark.parametrize("n", [3, 8, 40, 1000, 5000])
@pytest.mark.usefixtures("isa")
def test_infinite_upstream_gradients(n, dtype):
    """inf * p, and inf * p - inf at the label; other rows are as ever."""
    x = np.random.default_rng(n).normal(size=(20, n)).astype(dtype)
    labels = np.arange(20) % n
    upstream = np.ones(20)
    upstream[[3, 17]] = INF, -INF
    alone = fsm.softmax_cross_entropy_grad(x, labels, reduction="none")
    gradient = fsm.softmax_cross_entropy_grad(x, labels, reduction="none", grad_loss=upstream)
    expected = alone.copy()
    expected[3], expected[17] = INF, -INF
    expected[[3, 17], labels[[3, 17]]] = NAN
    np.testing.assert_array_equal(gradient, expected)
    # Weights whose sum is 0, as in torch.
    weight = np.zeros(n)
    weight[:2] = 1, -1
    gradient = fsm.softmax_cross_entropy_grad(x[:2], [0, 1], weight=weight)
    expected = np.array([[INF] * n, [-INF] * n])
    expected[[0, 1], [0, 1]] = NAN
    np.testing.assert_array_equal(gradient, expected)
    assert np.all(fsm.softmax_cross_entropy_grad(x[:2], [0, 1], z_loss=1e308, reduction="sum") == INF)
    # Probabilities whose weights sum to 0, so that the softmax has no part in it.
    soft = np.zeros((2, n), dtype)
    soft[:, :2] = 0.5
    gradient = fsm.softmax_cross_entropy_grad(x[:2], soft, weight=10 * weight, grad_loss=1e308, reduction="sum")
    np.testing.assert_array_equal(gradient, np.sign(-weight * [[1], [1]]) * np.where(weight, INF, 1))


def test_mean_of_losses_whose_sum_is_infinite():
    most = np.finfo(np.float64).max
    x = np.array([[0.49 * most, -0.49 * most]] * 5000)
    labels = np.ones(5000, int)
    for options in ({}, {"sample_weight": np.ones(5000)}, {"ignore_index": 0}):
        for loss in (
            fsm.softmax_cross_entropy(x, labels, **options),
            fsm.softmax_cross_entropy_value_and_grad(x, labels, **options)[0],
        ):
            assert abs(loss / (0.98 * most) - 1) < 1e-13  # 5000 additions
    assert fsm.softmax_cross_entropy(x, labels, reduction="sum") == INF
    x[0, 1] = -INF
    assert fsm.softmax_cross_entropy(x, labels) == INF
    x[1] = NAN
    assert np.isnan(fsm.softmax_cross_entropy(x, labels))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"factor": 0.0}, ValueError),
        ({"factor": -1.0}, ValueError),
        ({"factor": INF}, ValueError),
        ({"factor": NAN}, ValueError),
        ({"factor": "2"}, TypeError),
        ({"min_hess": -1e-9}, ValueError),
        ({"min_hess": INF}, ValueError),
        ({"min_hess": NAN}, ValueError),
        ({"min_hess": 1j}, TypeError),
    ],
    ids=str,
)
def test_grad_hess_options(options, error, dtype):
    data = batch(dtype)
    outs = np.full_like(data["logits"], 7), np.full_like(data["logits"], 7)
    with pytest.raises(error, match=next(iter(options))):
        fsm.softmax_cross_entropy_grad_hess(
            data["logits"], data["labels"], grad_out=outs[0], hess_out=outs[1], **options
        )
    assert np.all(outs[0] == 7)
    assert np.all(outs[1] == 7)


def test_grad_hess_class_weight_goes_with_indices(dtype):
    data = batch(dtype)
    with pytest.raises(ValueError, match="weight"):
        fsm.softmax_cross_entropy_grad_hess(data["logits"], data["soft"], weight=data["weight"])


def test_grad_hess_takes_no_loss_options(dtype):
    data = batch(dtype)
    for name, value in (("ignore_index", 0), ("reduction", "sum"), ("label_smoothing", 0.1), ("grad_loss", 1)):
        with pytest.raises(TypeError):
            fsm.softmax_cross_entropy_grad_hess(data["logits"], data["labels"], **{name: value})


# ---- Chosen log-probabilities -----------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.usefixtures("isa")
def test_selected_log_softmax(axis, temperature, dtype):
    """Bit for bit what take_along_axis picks from log_softmax."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 4, (4, 40, 5)).astype(dtype)
    logp = fsm.log_softmax(x, axis, temperature=temperature)
    n = x.shape[axis]
    for picks in (1, 2, 7, 0):
        shape = list(x.shape)
        shape[axis] = picks
        index = rng.integers(0, n, shape)
        got = fsm.selected_log_softmax(x, index, axis, temperature=temperature)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, np.take_along_axis(logp, index, axis))
    index = rng.integers(0, n, np.delete(x.shape, axis))
    got = fsm.selected_log_softmax(x, index, axis, temperature=temperature)
    expected = np.take_along_axis(logp, np.expand_dims(index, axis), axis).squeeze(axis)
    np.testing.assert_array_equal(got, expected)


def test_selected_broadcasts_as_take_along_axis_does(dtype):
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(dtype)
    logp = fsm.log_softmax(x)
    for logits, index in ((x, [[1, 5, 0]]), (x[:1], [[1], [2], [3]])):
        np.testing.assert_array_equal(
            fsm.selected_log_softmax(logits, index),
            np.take_along_axis(logp[: len(logits)], np.array(index), axis=-1),
        )


def test_selected_of_one_row(dtype):
    x = np.array([1, 2, 4], dtype)
    logp = fsm.log_softmax(x)
    assert fsm.selected_log_softmax(x, 2) == logp[2]
    np.testing.assert_array_equal(fsm.selected_log_softmax(x, [2, 0, 0, 1]), logp[[2, 0, 0, 1]])
    special = np.array([[1, -INF], [NAN, 1], [INF, 1], [-INF, -INF]], dtype)
    np.testing.assert_array_equal(fsm.selected_log_softmax(special, [1, 1, 1, 1]), [-INF, NAN, NAN, NAN])


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (np.zeros(3), TypeError),
        (np.zeros((3, 2), bool), TypeError),
        (["a", "b", "c"], TypeError),
        (np.zeros(4, int), ValueError),
        (np.zeros((4, 2), int), ValueError),
        (np.zeros((3, 2, 1), int), ValueError),
        (0, ValueError),
    ],
)
def test_selected_with_a_wrong_index(index, error, dtype):
    out = np.full(3, 7, dtype)
    with pytest.raises(error, match="index"):
        fsm.selected_log_softmax(np.zeros((3, 5), dtype), index, out=out)
    assert np.all(out == 7)


# ---- Vector-Jacobian products and the Jacobian ------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 10, 31, 32, 33, 100, 1000, 5000, 20_000])
@pytest.mark.usefixtures("isa")
def test_vector_jacobian_products(n, dtype):
    rng = np.random.default_rng(n)
    x, g = rng.normal(0, 4, (9, n)).astype(dtype), rng.normal(0, 2, (9, n)).astype(dtype)
    p, logp = fsm.softmax(x), fsm.log_softmax(x)
    for arrays, axis in (((p, logp, g), -1), ((p.T.copy(), logp.T.copy(), g.T.copy()), 0)):
        first, second, upstream = (np.moveaxis(a, axis, -1).astype(oracle.Wide) for a in arrays)
        eps = np.finfo(dtype).eps
        # The largest term of g - sum(g * p) is max(|g|, sum |g * p|): 2 ULP of it, and a product.
        products = np.abs(upstream * first).sum(-1, keepdims=True)
        exact = first * (upstream - (upstream * first).sum(-1, keepdims=True))
        got = np.moveaxis(fsm.softmax_vjp(arrays[0], arrays[2], axis), axis, -1)
        bound = 3 * eps * first * (np.abs(upstream) + products) + 2 * np.finfo(dtype).smallest_subnormal
        assert np.all(np.abs(got - exact) <= bound)
        total, magnitude = upstream.sum(-1, keepdims=True), np.abs(upstream).sum(-1, keepdims=True)
        exact = upstream - np.exp(second) * total
        got = np.moveaxis(fsm.log_softmax_vjp(arrays[1], arrays[2], axis), axis, -1)
        bound = 3 * eps * (np.abs(upstream) + np.exp(second) * magnitude)
        assert np.all(np.abs(got - exact) <= bound + 2 * np.finfo(dtype).smallest_subnormal)


@pytest.mark.parametrize("axis", [None, (0, 1), (1, 2), (0, 2), (), 0])
def test_vector_jacobian_products_on_axes(axis, dtype):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(3, 4, 5)).astype(dtype), rng.normal(size=(3, 4, 5)).astype(dtype)
    p, logp = fsm.softmax(x, axis), fsm.log_softmax(x, axis)
    kwargs = {"axis": axis, "keepdims": True}
    bound = 6 * np.finfo(dtype).eps * (np.abs(g) + np.sum(np.abs(g), **kwargs))
    assert np.all(np.abs(fsm.softmax_vjp(p, g, axis) - p * (g - np.sum(g * p, **kwargs))) <= bound)
    assert np.all(np.abs(fsm.log_softmax_vjp(logp, g, axis) - (g - np.exp(logp) * np.sum(g, **kwargs))) <= bound)


def test_vector_jacobian_product_of_one_element():
    assert type(fsm.softmax_vjp(1.0, 3.0)) is np.float64
    assert fsm.softmax_vjp(1.0, 3.0) == 0
    assert fsm.log_softmax_vjp(np.float32(0), 3.0) == 0


@pytest.mark.parametrize("shape", [(5,), (3, 4), (4, 3), (3, 5, 1), ()])
def test_vector_jacobian_products_need_equal_shapes(shape, dtype):
    p = np.ones((3, 5), dtype)
    for function in (fsm.softmax_vjp, fsm.log_softmax_vjp):
        out = np.full_like(p, 7)
        with pytest.raises(ValueError, match="g has shape"):
            function(p, np.ones(shape), out=out)
        assert np.all(out == 7)


@pytest.mark.parametrize("n", [3, 40, 300, 5000])
@pytest.mark.usefixtures("isa")
def test_infinite_vector_jacobian_products(n, dtype):
    """As the formulas say, element by element, of rows whose sum is infinite; other rows are as ever."""
    rng = np.random.default_rng(n)
    p, g = fsm.softmax(rng.normal(size=(20, n)).astype(dtype)), rng.normal(size=(20, n)).astype(dtype)
    logp = np.log(p)
    alone = fsm.softmax_vjp(p, g), fsm.log_softmax_vjp(logp, g)
    g[3, 1], g[17, 0] = INF, -INF
    g[9] = np.finfo(dtype).max  # only log_softmax_vjp sums them unweighted
    for got, ever, infinite in zip(
        (fsm.softmax_vjp(p, g), fsm.log_softmax_vjp(logp, g)), alone, ([3, 17], [3, 9, 17]), strict=True
    ):
        expected = ever.copy()
        expected[3], expected[9], expected[17] = -INF, -INF, INF
        expected[3, 1] = expected[17, 0] = NAN
        others = [row for row in range(20) if row not in (3, 9, 17)]
        np.testing.assert_array_equal(got[infinite], expected[infinite])
        np.testing.assert_array_equal(got[others], expected[others])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_jacobian(axis, dtype):
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(dtype)
    p = fsm.softmax(x, axis)
    got = fsm.softmax_jacobian(p, axis)
    n = x.shape[axis]
    assert got.shape == (*np.delete(x.shape, axis), n, n)
    assert got.dtype == dtype
    rows = np.moveaxis(p, axis, -1).astype(oracle.Wide)
    exact = np.eye(n) * rows[..., None] - rows[..., None] * rows[..., None, :]
    # The product rounds once, the difference on the diagonal again.
    bound = np.finfo(dtype).eps * (rows[..., None] * rows[..., None, :] + np.abs(exact))
    assert np.all(np.abs(got - exact) <= bound)


def test_jacobian_is_the_vector_jacobian_product(dtype):
    p = fsm.softmax(np.random.default_rng(0).normal(size=(3, 7)).astype(dtype))
    g = np.random.default_rng(1).normal(size=(3, 7)).astype(dtype)
    product = np.einsum("rij,rj->ri", fsm.softmax_jacobian(p).astype(float), g)
    np.testing.assert_allclose(fsm.softmax_vjp(p, g), product, rtol=0, atol=16 * np.finfo(dtype).eps)


def test_jacobian_by_finite_differences():
    x = np.random.default_rng(0).normal(size=6)
    h = 1e-5
    steps = h * np.eye(6)
    difference = (fsm.softmax(x + steps) - fsm.softmax(x - steps)) / (2 * h)
    # h**2 / 6 of a third derivative below 1, and eps / h.
    np.testing.assert_allclose(fsm.softmax_jacobian(fsm.softmax(x)), difference.T, rtol=0, atol=h**2 + 2.3e-16 / h)


@given(
    x=hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=finite),
    y=st.integers(0, 8),
)
@example(x=np.array([[0.0]]), y=0)
def test_gradient_sums_to_zero(x, y):
    """The gradient of a shift that changes nothing."""
    labels = np.full(len(x), y % x.shape[1])
    gradient = fsm.softmax_cross_entropy_grad(x, labels, reduction="none")
    # Probabilities sum to 1 within 2 eps; each element's difference rounds once.
    assert np.all(np.abs(gradient.sum(-1)) <= (2 + x.shape[1]) * np.finfo(float).eps)


@pytest.mark.parametrize("kind", ["ndarray", "pandas", "xarray", "dask"])
def test_an_unknown_option_names_the_public_function(kind):
    x = np.ones((2, 3))
    if kind == "pandas":
        x = pytest.importorskip("pandas").DataFrame(x)
    elif kind == "xarray":
        x = pytest.importorskip("xarray").DataArray(x)
    elif kind == "dask":
        x = pytest.importorskip("dask.array").from_array(x)
    for function in (
        fsm.softmax_cross_entropy,
        fsm.softmax_cross_entropy_grad,
        fsm.softmax_cross_entropy_value_and_grad,
    ):
        with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) got an unexpected keyword argument 'wait'"):
            function(x, [0, 1], wait=[1, 2, 3])


# ---- Rows of no classes -----------------------------------------------------------------


@pytest.mark.parametrize("f", [fsm, reference], ids=["fastsoftmax", "reference"])
def test_z_loss_of_rows_of_no_classes(f, dtype):
    """Their logsumexp is -inf and its square counts; without z_loss they cost nothing."""
    x = np.zeros((2, 0), dtype)
    for z, weights in ((0.1, None), (0.1, [2, 0]), (-0.1, [1, 3]), (0.0, None), (0.0, [1, 0])):
        each = np.ones(2) if weights is None else np.array(weights)
        losses = [w * z * INF if w and z else 0 for w in each]
        options = {"z_loss": z, "sample_weight": weights}
        np.testing.assert_array_equal(f.softmax_cross_entropy(x, x, reduction="none", **options), losses)
        np.testing.assert_array_equal(f.softmax_cross_entropy(x, x, reduction="sum", **options), sum(losses))
        loss, gradient = f.softmax_cross_entropy_value_and_grad(x, x, **options)
        np.testing.assert_array_equal(loss, sum(losses) / each.sum())
        assert loss.dtype == dtype
        assert gradient.shape == (2, 0)
    assert np.isnan(f.softmax_cross_entropy(x, x, z_loss=0.1, sample_weight=[0, 0]))
    assert np.isnan(f.softmax_cross_entropy(x[:0], x[:0], z_loss=0.1))
    np.testing.assert_array_equal(
        f.softmax_cross_entropy(x, [-1, -1], ignore_index=-1, z_loss=0.1, reduction="none"), [0, 0]
    )


@pytest.mark.parametrize("f", [fsm, reference], ids=["fastsoftmax", "reference"])
def test_empty_lists_of_labels(f, dtype):
    x = np.zeros((0, 3), dtype)
    for loss in (f.softmax_cross_entropy(x, []), f.softmax_cross_entropy(x, np.zeros(0, int))):
        assert np.isnan(loss)
    assert f.softmax_cross_entropy_grad(x, []).shape == (0, 3)
    assert f.selected_log_softmax(x, []).shape == (0,)
    for empty in (np.zeros(0), np.zeros(0, np.float32)):
        with pytest.raises(TypeError):
            f.softmax_cross_entropy(x, empty)


def test_a_list_of_labels_is_converted_once(dtype):
    class Labels:
        reads = 0

        def __array__(self, dtype=None, copy=None):
            self.reads += 1
            return np.array([0, 1])

    labels = Labels()
    fsm.softmax_cross_entropy(np.ones((2, 3), dtype), labels)
    assert labels.reads == 1
