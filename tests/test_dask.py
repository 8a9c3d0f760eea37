"""Lazy arrays of Dask: lazy results, the array's own bits where a row lies in one chunk, close to them elsewhere."""

import numpy as np
import oracle
import pytest

import fastsoftmax as fsm

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

ELEMENTWISE = [fsm.softmax, fsm.log_softmax]


@pytest.fixture(autouse=True)
def _one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(params=[np.float16, np.float32, np.float64, np.int32], ids=lambda dtype: dtype.__name__)
def x(request):
    return np.random.default_rng(5).normal(0, 4, (6, 5, 20)).astype(request.param)


WHOLE_ROWS = [((2, 3, 20), -1), ((6, 1, 4), 0), ((6, 2, 20), (0, 2)), ((3, 5, 20), (1, 2)), ((6, 5, 20), None)]
SPLIT_ROWS = [((2, 3, 7), -1), ((1, 5, 20), 0), ((4, 3, 6), (0, 2)), ((3, 5, 9), None)]


def computed(got, expected):
    """A lazy result's value; what it said of its shape and dtype must be true."""
    assert isinstance(got, da.Array)
    value = got.compute()
    assert got.dtype == value.dtype == expected.dtype
    assert got.shape == np.shape(value) == np.shape(expected)
    return value


def calls(x):
    """Every way to call the three functions of `axis`, for an array or a lazy one in its place."""
    mask = np.random.default_rng(1).random(x.shape) < 0.6
    mask[2, 3] = False
    b = (x - 1).astype(np.result_type(x, np.float16))
    for function in ELEMENTWISE:
        yield lambda a, axis, f=function: f(a, axis)
        yield lambda a, axis, f=function: f(a, axis, temperature=0.7)
        yield lambda a, axis, f=function: f(a, axis, temperature=np.array([[[0.7]]]))
        yield lambda a, axis, f=function: f(a, axis, where=mask)
        yield lambda a, axis, f=function: f(a, axis, where=mask[:, :1], temperature=3)
    yield lambda a, axis: fsm.logsumexp(a, axis)
    yield lambda a, axis: fsm.logsumexp(a, axis, keepdims=True, where=mask)
    yield lambda a, axis: fsm.logsumexp(a, axis, b=2)
    yield lambda a, axis: fsm.logsumexp(a, axis, b=b)
    yield lambda a, axis: fsm.logsumexp(a, axis, b=b, where=mask, return_sign=True)[0]
    yield lambda a, axis: fsm.logsumexp(a, axis, b=b, where=mask, return_sign=True)[1]
    yield lambda a, axis: fsm.logsumexp(a, axis, return_sign=True)[1]


@pytest.mark.parametrize(("chunks", "axis"), WHOLE_ROWS, ids=str)
def test_rows_in_one_chunk_have_the_same_bits(x, chunks, axis):
    for call in calls(x):
        expected = call(x, axis)
        np.testing.assert_array_equal(computed(call(da.from_array(x, chunks), axis), expected), expected)


@pytest.mark.parametrize(("chunks", "axis"), SPLIT_ROWS, ids=str)
def test_rows_in_many_chunks(x, chunks, axis):
    for call in calls(x):
        expected = call(x, axis)
        # What the array's own function is off by; b can cancel, to an error of that of the largest term.
        eps = np.finfo(expected.dtype).eps
        got = computed(call(da.from_array(x, chunks), axis), expected)
        np.testing.assert_allclose(got, expected, rtol=16 * eps * max(1, np.log(16 / eps)), atol=64 * eps)


@pytest.mark.usefixtures("exact_values")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pieces", [2, 40, 300])
def test_accuracy_of_rows_in_many_chunks(dtype, pieces):
    """As the README states it: one ULP in float32, 4 eps (1 + |log p|) relative in float64."""
    rng = np.random.default_rng(pieces)
    x = rng.normal(0, 1, (40, 600)) * np.logspace(-2, 2, 40)[:, np.newaxis] + 1e4 * (np.arange(40) % 2)[:, np.newaxis]
    x[:, 7] += np.linspace(0, 60, 40)  # log-probabilities close to 0
    x = x.astype(dtype)
    lazy = da.from_array(x, (20, 600 // pieces))
    exact = oracle.rows(x)
    with np.errstate(all="ignore"):
        for function in ELEMENTWISE:
            got, right = function(lazy).compute(), getattr(exact, function.__name__)
            if dtype == np.float32:
                assert np.max(oracle.ulp_error(got, right, dtype)) <= 1
            else:
                seen = np.abs(right) > 1e-290
                error = np.abs(got - right)[seen] / np.abs(right[seen])
                assert np.max(error / (1 + np.abs(np.log(np.abs(right[seen]))))) <= 4 * np.finfo(dtype).eps
        assert np.max(oracle.ulp_error(fsm.logsumexp(lazy).compute(), exact.logsumexp, dtype)) <= 4


def test_special_values_of_rows_in_many_chunks():
    x = np.random.default_rng(0).normal(size=(7, 6))
    x[0, 1], x[1, 4], x[2, 5], x[3] = np.nan, np.inf, -np.inf, -np.inf
    x[4, :3] = -np.inf  # the whole of a chunk
    x[5, 1] = x[5, 4] = np.inf
    with np.errstate(all="raise"):
        for function in (*ELEMENTWISE, fsm.logsumexp):
            np.testing.assert_allclose(function(da.from_array(x, (7, 3))).compute(), function(x), rtol=1e-14)


def test_float16_and_integers_do_not_warn():
    x = da.from_array(np.array([[0, -30000, -60000]], np.float16), (1, 2))
    with np.errstate(all="raise"):
        assert fsm.log_softmax(x, temperature=0.001).compute()[0, 2] == -np.inf
        half = da.from_array(np.array([[65504, -65504]], np.float16), (1, 2))
        assert fsm.softmax_cross_entropy(half, [1], reduction="none").compute() == np.inf
        infinite = da.from_array(np.array([[0, -np.inf]] * 2), (1, 2))
        loss = fsm.softmax_cross_entropy(infinite, [1, 1], sample_weight=[1, -1], reduction="sum")
        assert np.isnan(loss.compute())


@pytest.mark.parametrize("b", [1e5, 1e-9])
def test_float16_with_a_factor_beyond_its_range(b):
    x = np.array([[1, 2]], np.float16)
    for chunks in ((1, 2), (1, 1)):
        assert fsm.logsumexp(da.from_array(x, chunks), b=b).compute() == fsm.logsumexp(x, b=b)


@pytest.mark.parametrize("scale", [1e-50, 1e40])
@pytest.mark.parametrize("chunks", [(2, 4), (2, 2)])
def test_mean_with_weights_beyond_the_range_of_the_logits(scale, chunks):
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    labels = [0, 1, 1, 2, 3, 0]
    for weights in ({"weight": np.array([1, 2, 1, 1])}, {"sample_weight": np.arange(1, 7)}):
        scaled = {name: value * scale for name, value in weights.items()}
        loss = fsm.softmax_cross_entropy(da.from_array(x, chunks), labels, **scaled).compute()
        np.testing.assert_allclose(loss, fsm.softmax_cross_entropy(x, labels, **weights), rtol=1e-6)


@pytest.mark.parametrize("length", [0, 1])
def test_empty(length):
    for shape, axis in (((3, 0), 1), ((0, 4), 1), ((0, 4), 0), ((length,), 0)):
        x = np.zeros(shape)
        for function in (*ELEMENTWISE, fsm.logsumexp):
            expected = function(x, axis)
            np.testing.assert_array_equal(computed(function(da.from_array(x, chunks=2), axis), expected), expected)


def test_chunks_of_unknown_sizes():
    """A plain call needs none; an array beside needs to be cut alike."""
    values = np.random.default_rng(0).normal(size=(6, 4))
    x = da.from_array(values, (2, 4))
    unknown, kept = x[x[:, 0] > 0], values[values[:, 0] > 0]
    for function in (*ELEMENTWISE, fsm.logsumexp):
        np.testing.assert_array_equal(function(unknown).compute(), function(kept))
    for call in (
        lambda: fsm.softmax(unknown, where=unknown > 0),
        lambda: fsm.logsumexp(unknown, b=2.0),
        lambda: fsm.softmax_cross_entropy(unknown, [0] * len(kept)),
    ):
        with pytest.raises(ValueError, match=r"compute_chunk_sizes\(\)"):
            call()


def test_zero_dimensions():
    for function in (*ELEMENTWISE, fsm.logsumexp):
        for axis in (-1, None, ()):
            assert function(da.from_array(np.array(2.5)), axis).compute() == function(2.5, axis)


def test_lazy_arguments():
    """Masks, temperatures, factors, labels and weights may be lazy as well, in chunks of their own."""
    rng = np.random.default_rng(0)
    x, mask, b = rng.normal(size=(8, 10)), rng.random((8, 10)) < 0.5, rng.normal(size=(8, 10))
    temperature, labels, weight = rng.uniform(1, 2, (8, 1)), rng.integers(0, 10, 8), rng.uniform(1, 2, 8)
    for chunks in ((3, 10), (3, 4)):
        lazy = da.from_array(x, chunks)
        np.testing.assert_allclose(
            fsm.softmax(lazy, where=da.from_array(mask, 7), temperature=da.from_array(temperature, (2, 1))).compute(),
            fsm.softmax(x, where=mask, temperature=temperature),
            rtol=1e-14,
        )
        np.testing.assert_allclose(
            fsm.logsumexp(lazy, b=da.from_array(b, 3), where=da.from_array(mask, 4), return_sign=True)[0].compute(),
            fsm.logsumexp(x, b=b, where=mask, return_sign=True)[0],
            rtol=1e-13,
        )
        np.testing.assert_allclose(
            fsm.softmax_cross_entropy(
                lazy, da.from_array(labels, 5), sample_weight=da.from_array(weight, 2), reduction="none"
            ).compute(),
            fsm.softmax_cross_entropy(x, labels, sample_weight=weight, reduction="none"),
            rtol=1e-14,
        )


LOSS_OPTIONS = {
    "plain": {},
    "class weights": {"weight": np.linspace(0.5, 2, 12)},
    "sample weights": {"sample_weight": np.array([1, 0.5, 0, 2, 1, 3, 0.25])},
    "smoothing": {"label_smoothing": 0.1, "weight": np.linspace(0.5, 2, 12), "z_loss": 0.1},
    "ignored": {"ignore_index": -100, "weight": np.linspace(0.5, 2, 12), "z_loss": 0.1},
}


@pytest.mark.parametrize("options", LOSS_OPTIONS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("chunks", [(3, 12), (7, 12), (3, 5), (7, 1)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_cross_entropy(dtype, chunks, reduction, options):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (7, 12)).astype(dtype)
    indices = rng.integers(0, 12, 7)
    chosen = LOSS_OPTIONS[options]
    cases = [indices]
    if "ignore_index" in chosen:
        indices[[1, 4]] = -100
        x[1] = np.nan
    else:
        cases.append(fsm.softmax(rng.normal(size=(7, 12))))
    eps = np.finfo(dtype).eps
    for labels in cases:
        expected = fsm.softmax_cross_entropy(x, labels, reduction=reduction, **chosen)
        lazy = da.from_array(x, chunks)
        got = computed(fsm.softmax_cross_entropy(lazy, labels, reduction=reduction, **chosen), expected)
        if reduction == "none" and chunks[1] == 12:
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_allclose(got, expected, rtol=8 * eps)
        transposed = da.from_array(x.T, chunks[::-1])
        soft = labels.T if labels.ndim == 2 else labels
        turned = fsm.softmax_cross_entropy(transposed, soft, 0, reduction=reduction, **chosen).compute()
        np.testing.assert_array_equal(turned, got)


@pytest.mark.parametrize("chunks", [(2, 3), (2, 2)], ids=str)
def test_a_class_without_weight_counts_nothing(chunks):
    x = np.array([[np.inf, 0, 1], [0, 1, 2]])
    for reduction in ("none", "sum", "mean"):
        options = {"weight": [0, 1, 1], "z_loss": 0.1, "reduction": reduction}
        got = fsm.softmax_cross_entropy(da.from_array(x, chunks), [0, 1], **options).compute()
        np.testing.assert_allclose(got, fsm.softmax_cross_entropy(x, [0, 1], **options), rtol=1e-15)


def test_a_list_of_weights_is_read_when_the_graph_is_made():
    """Not when it is computed, whatever has become of the list by then."""
    for chunks in ((2, 3), (2, 2)):
        weight = [1.0, 2.0, 3.0]
        loss = fsm.softmax_cross_entropy(da.from_array(np.eye(2, 3), chunks), [1, 2], weight=weight)
        weight[:] = [9.0, 0.0, 9.0]
        assert loss.compute() == fsm.softmax_cross_entropy(np.eye(2, 3), [1, 2], weight=[1.0, 2.0, 3.0])


def test_cross_entropy_where_nothing_counts():
    for chunks in ((2, 3), (2, 2)):
        loss = fsm.softmax_cross_entropy(da.from_array(np.zeros((2, 3)), chunks), [-1, -1], ignore_index=-1)
        assert np.isnan(loss.compute())


def test_other_functions_compute_first():
    x = np.random.default_rng(0).normal(size=(4, 6))
    lazy = da.from_array(x, 2)
    np.testing.assert_array_equal(
        fsm.softmax_cross_entropy_grad(lazy, [0, 1, 2, 3]), fsm.softmax_cross_entropy_grad(x, [0, 1, 2, 3])
    )
    np.testing.assert_array_equal(fsm.softmax_vjp(lazy, lazy), fsm.softmax_vjp(x, x))


BAD_CALLS = {
    "x has dtype complex": (TypeError, lambda x: fsm.softmax(x * 1j)),
    "out is a ndarray": (TypeError, lambda x: fsm.softmax(x, out=np.empty(x.shape))),
    "where has dtype": (TypeError, lambda x: fsm.logsumexp(x, where=x)),
    "where has shape": (ValueError, lambda x: fsm.softmax(x, where=np.ones(3, bool))),
    "temperature is 0": (ValueError, lambda x: fsm.softmax(x, temperature=0)),
    "temperature is -1": (ValueError, lambda x: fsm.softmax(x, temperature=-np.ones((4, 1))).compute()),
    "temperature has shape": (ValueError, lambda x: fsm.log_softmax(x, temperature=np.ones((4, 6)))),
    "temperature is ragged": (ValueError, lambda x: fsm.softmax(x, temperature=[[1.0], [1.0, 2.0]])),
    "x is a masked array": (TypeError, lambda x: fsm.softmax(da.ma.masked_greater(x, 0))),
    "b is a masked array": (TypeError, lambda x: fsm.logsumexp(x, b=da.ma.masked_greater(x, 0))),
    "p is a masked array": (TypeError, lambda x: fsm.softmax_vjp(da.ma.masked_greater(x, 0), x)),
    "axis 2 is out of bounds": (np.exceptions.AxisError, lambda x: fsm.logsumexp(x, 2)),
    "x and b have shapes": (ValueError, lambda x: fsm.logsumexp(x, b=np.ones(5))),
    "labels holds 6": (IndexError, lambda x: fsm.softmax_cross_entropy(x, [0, 1, 2, 6]).compute()),
    "labels has shape": (ValueError, lambda x: fsm.softmax_cross_entropy(x, [0, 1, 2])),
    "labels .* has dtype float64": (TypeError, lambda x: fsm.softmax_cross_entropy(x, np.ones(4))),
    "weight has shape": (ValueError, lambda x: fsm.softmax_cross_entropy(x, [0, 1, 2, 3], weight=[1, 2])),
    "sample_weight has shape": (ValueError, lambda x: fsm.softmax_cross_entropy(x, [0, 1, 2, 3], sample_weight=[1])),
    "ignore_index": (ValueError, lambda x: fsm.softmax_cross_entropy(x, x, ignore_index=1)),
    "reduction": (ValueError, lambda x: fsm.softmax_cross_entropy(x, x, reduction="all")),
    "label_smoothing": (ValueError, lambda x: fsm.softmax_cross_entropy(x, x, label_smoothing=2)),
}


@pytest.mark.parametrize("message", BAD_CALLS)
@pytest.mark.parametrize("chunks", [(2, 6), (2, 3)], ids=str)
def test_bad_arguments(message, chunks):
    error, call = BAD_CALLS[message]
    with pytest.raises(error, match=message):
        call(da.from_array(np.ones((4, 6)), chunks))


# ---- dask.distributed -------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="256MiB", dashboard_address=None, processes=True
    )
    with cluster, distributed.Client(cluster) as client:
        yield client


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_array_larger_than_the_workers_memory(client):
    rows, n = 64_000, 1_200
    x = da.random.default_rng(0).uniform(-9, 9, (rows, n), chunks=(4_000, 400))
    assert x.nbytes > 2 * 256 * 2**20
    labels = da.arange(rows, chunks=4_000) % n
    results = [
        fsm.logsumexp(x),
        fsm.softmax(x).max(axis=1),
        fsm.log_softmax(x)[:, 5],
        fsm.softmax_cross_entropy(x, labels, reduction="none"),
    ]
    log_sum, largest, fifth, loss = client.gather(client.compute(results))
    some = slice(31_990, 32_010)
    part = x[some].compute(scheduler="synchronous")
    logp = fsm.log_softmax(part)
    np.testing.assert_allclose(log_sum[some], fsm.logsumexp(part), rtol=1e-14)
    np.testing.assert_allclose(largest[some], fsm.softmax(part).max(axis=1), rtol=1e-13)
    np.testing.assert_allclose(fifth[some], logp[:, 5], rtol=1e-14)
    np.testing.assert_allclose(loss[some], -logp[np.arange(20), np.arange(rows)[some] % n], rtol=1e-14)
    assert np.all(np.isfinite(log_sum))


@pytest.mark.filterwarnings("default")
def test_the_same_bits_for_any_number_of_workers(client):
    x = da.random.default_rng(1).normal(0, 4, (300, 1_000), chunks=(150, 130))
    labels = np.arange(300)
    results = [fsm.logsumexp(x), fsm.logsumexp(x, None), fsm.softmax(x), fsm.softmax_cross_entropy(x, labels)]
    one_worker = sorted(client.scheduler_info()["workers"])[0]
    for alone, two, one in zip(
        dask.compute(*results, scheduler="synchronous"),
        client.gather(client.compute(results)),
        client.gather(client.compute(results, workers=[one_worker], allow_other_workers=False)),
        strict=True,
    ):
        np.testing.assert_array_equal(two, alone)
        np.testing.assert_array_equal(one, alone)
