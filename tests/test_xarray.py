"""DataArray and Dataset: axes by name; the array's own bits, with dimensions, coordinates and attributes."""

import numpy as np
import pytest

import fastsoftmax as fsm
from fastsoftmax import special

xr = pytest.importorskip("xarray")


@pytest.fixture(params=[np.float32, np.float64])
def logits(request):
    return xr.DataArray(
        np.random.default_rng(0).normal(0, 4, (2, 3, 4)).astype(request.param),
        dims=("batch", "class", "time"),
        coords={
            "class": ["cat", "dog", "owl"],
            "time": np.arange(4) / 2,
            "weight": ("class", [1.0, 2.0, 0.5]),
            "seconds": ("time", [0, 1, 2, 3]),
            "run": 7,
        },
        name="logits",
        attrs={"units": "nats"},
    )


def check(got, expected, dims, coords):
    assert type(got) is xr.DataArray
    np.testing.assert_array_equal(got.values, expected)
    assert got.dtype == expected.dtype
    assert got.dims == dims
    assert set(got.coords) == coords
    assert got.name == "logits"
    assert got.attrs == {"units": "nats"}


ALL = {"class", "time", "weight", "seconds", "run"}
WITHOUT_CLASS = {"time", "seconds", "run"}
DIMS = ("batch", "class", "time")

AXES = [
    ("class", 1),
    ("batch", 0),
    (-1, -1),
    (("time", "class"), (1, 2)),
    (("batch", 2), (0, 2)),
    (None, None),
    ((), ()),
]


@pytest.mark.parametrize(("name", "axis"), AXES, ids=str)
def test_elements_keep_everything(name, axis, logits):
    for function in (fsm.softmax, fsm.log_softmax, special.softmax):
        got = function(logits, name)
        check(got, function(logits.values, axis), DIMS, ALL)
        for coordinate in ALL:
            xr.testing.assert_identical(got[coordinate], logits[coordinate])


@pytest.mark.parametrize(("name", "axis"), AXES, ids=str)
def test_logsumexp_reduces_as_xarray_does(name, axis, logits):
    dims = [DIMS[d] for d in ((0, 1, 2) if axis is None else axis if isinstance(axis, tuple) else (axis,))]
    for keepdims in (False, True):
        got = fsm.logsumexp(logits, name, keepdims=keepdims)
        model = logits.max(dims, keep_attrs=True, keepdims=keepdims)
        xr.testing.assert_identical(got, model.copy(data=fsm.logsumexp(logits.values, axis, keepdims=keepdims)))


def test_logsumexp_with_signs(logits):
    for got, expected in zip(
        fsm.logsumexp(logits, "class", b=-1, return_sign=True),
        fsm.logsumexp(logits.values, 1, b=-1, return_sign=True),
        strict=True,
    ):
        check(got, expected, ("batch", "time"), WITHOUT_CLASS)


def test_losses_and_gradients(logits):
    x = logits.values
    labels = xr.DataArray(np.arange(8).reshape(4, 2) % 3, dims=("time", "batch"))  # another order
    weight = xr.DataArray([1.0, 2.0, 3.0], dims="class")
    sample_weight = xr.DataArray(np.linspace(0, 1, 8).reshape(4, 2), dims=("time", "batch"))
    options = {"weight": weight, "sample_weight": sample_weight, "reduction": "none"}
    plain_options = {"weight": weight.values, "sample_weight": sample_weight.values.T, "reduction": "none"}
    expected = fsm.softmax_cross_entropy_value_and_grad(x, labels.values.T, 1, **plain_options)
    loss, gradient = fsm.softmax_cross_entropy_value_and_grad(logits, labels, "class", **options)
    check(loss, expected[0], ("batch", "time"), WITHOUT_CLASS)
    check(gradient, expected[1], DIMS, ALL)
    check(fsm.softmax_cross_entropy(logits, labels, "class", **options), expected[0], ("batch", "time"), WITHOUT_CLASS)
    check(fsm.softmax_cross_entropy_grad(logits, labels, "class", **options), expected[1], DIMS, ALL)
    check(
        fsm.softmax_cross_entropy(logits, labels, "class"),
        fsm.softmax_cross_entropy(x, labels.values.T, 1),
        (),
        {"run"},
    )
    soft = fsm.softmax(-logits, "class")
    check(
        fsm.softmax_cross_entropy_grad(logits, soft.transpose("time", "batch", "class"), "class"),
        fsm.softmax_cross_entropy_grad(x, soft.values, 1),
        DIMS,
        ALL,
    )
    for got, right in zip(
        fsm.softmax_cross_entropy_grad_hess(logits, labels, "class"),
        fsm.softmax_cross_entropy_grad_hess(x, labels.values.T, 1),
        strict=True,
    ):
        check(got, right, DIMS, ALL)
    check(
        fsm.selected_log_softmax(logits, labels, "class"),
        fsm.selected_log_softmax(x, labels.values.T, 1),
        ("batch", "time"),
        WITHOUT_CLASS,
    )
    for function in (fsm.softmax_vjp, fsm.log_softmax_vjp):
        check(function(logits, soft.T, "class"), function(x, soft.values, 1), DIMS, ALL)


def test_arguments_broadcast_by_name(logits):
    x = logits.values
    mask = xr.DataArray([True, False, True], dims="class", coords={"class": logits["class"]})
    temperature = xr.DataArray([0.5, 1.0, 2.0, 3.0], dims="time")
    b = xr.DataArray([[1.0, -1.0], [2.0, 1.0], [0.0, 3.0]], dims=("class", "batch"))
    check(
        fsm.softmax(logits, "class", where=mask, temperature=temperature),
        fsm.softmax(x, 1, where=mask.values[:, np.newaxis], temperature=temperature.values),
        DIMS,
        ALL,
    )
    check(
        fsm.logsumexp(logits, "class", b=b),
        fsm.logsumexp(x, 1, b=b.values.T[:, :, np.newaxis]),
        ("batch", "time"),
        WITHOUT_CLASS,
    )


def test_factors_that_stretch_a_dimension_give_a_plain_array():
    x = xr.DataArray(np.arange(2.0).reshape(2, 1), dims=("r", "c"), coords={"c": ["q"]})
    b = np.arange(6.0).reshape(2, 3)
    for keepdims in (False, True):
        got = fsm.logsumexp(x, "r", b=b, keepdims=keepdims)
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, fsm.logsumexp(x.values, 0, b=b, keepdims=keepdims))
    xr.testing.assert_identical(
        fsm.logsumexp(x, "c", b=b), x[:, 0].drop_vars("c").copy(data=fsm.logsumexp(x.values, b=b))
    )


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(("name", "axis"), [("r", -2), ("c", -1), (("c", "r"), (-2, -1))])
def test_a_name_means_its_axis_where_factors_have_more(name, axis, keepdims):
    x = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("r", "c"))
    b = np.random.default_rng(0).random((5, 2, 3))
    got = fsm.logsumexp(x, name, b=b, keepdims=keepdims)
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, fsm.logsumexp(x.values, axis, b=b, keepdims=keepdims))


def test_dataset(logits):
    dataset = xr.Dataset({"first": logits, "second": logits.isel(time=0, drop=True)}, attrs={"title": "two"})
    for function in (fsm.softmax, fsm.logsumexp):
        expected = xr.Dataset({name: function(a, "class") for name, a in dataset.items()}, attrs={"title": "two"})
        xr.testing.assert_identical(function(dataset, "class"), expected)
    labels = xr.DataArray(np.ones(2, int), dims="batch")
    loss, gradient = fsm.softmax_cross_entropy_value_and_grad(dataset[["second"]], labels, "class")
    assert loss.attrs == gradient.attrs == {"title": "two"}
    xr.testing.assert_identical(gradient["second"], fsm.softmax_cross_entropy_grad(dataset["second"], labels, "class"))


def test_out_is_returned_as_it_is(logits):
    out = np.empty_like(logits.values)
    assert fsm.softmax(logits, "class", out=out) is out
    np.testing.assert_array_equal(out, fsm.softmax(logits.values, 1))
    kept = np.empty((2, 1, 4))
    assert fsm.logsumexp(logits, "class", keepdims=True, out=kept) is kept


def test_out_is_an_ndarray(logits):
    out = xr.zeros_like(logits)
    with pytest.raises(TypeError, match=r"^out is a DataArray, expected a numpy\.ndarray"):
        fsm.softmax(logits, "class", out=out)
    assert not out.any()


def test_what_a_dataset_cannot_hold(logits):
    out = np.zeros(logits.shape)
    dataset = xr.Dataset({"a": logits})
    with pytest.raises(TypeError, match=r"^out is a ndarray, expected None"):
        fsm.softmax(dataset, "class", out=out)
    labels = xr.DataArray(np.zeros((2, 4), int), dims=("batch", "time"))
    with pytest.raises(TypeError, match=r"^hess_out is a ndarray, expected None"):
        fsm.softmax_cross_entropy_grad_hess(dataset, labels, "class", hess_out=out)
    assert not out.any()
    with pytest.raises(ValueError, match=r"the result for 'a' has shape \(2, 2, 4\), .* DataArray"):
        fsm.selected_log_softmax(dataset, np.zeros((2, 2, 4), int), "class")


def test_lazy_values_stay_lazy(logits):
    da = pytest.importorskip("dask.array")
    lazy = logits.chunk({"class": -1, "time": 2})
    for function in (fsm.softmax, fsm.logsumexp):
        got = function(lazy, "class")
        assert isinstance(got.data, da.Array)
        xr.testing.assert_identical(got.compute(), function(logits, "class"))
    labels = xr.DataArray(np.ones((2, 4), int), dims=("batch", "time"))
    got = fsm.softmax_cross_entropy(lazy, labels, "class")
    assert isinstance(got.data, da.Array)
    xr.testing.assert_allclose(got.compute(), fsm.softmax_cross_entropy(logits, labels, "class"), rtol=1e-6)


def test_bad_arguments(logits):
    labels = xr.DataArray(np.zeros((2, 4), int), dims=("batch", "time"))
    with pytest.raises(ValueError, match="'colour' not found"):
        fsm.softmax(logits, "colour")
    with pytest.raises(ValueError, match="'class' not found"):
        fsm.softmax(xr.Dataset({"a": logits, "b": logits.isel({"class": 0}, drop=True)}), "class")
    with pytest.raises(ValueError, match="labels does not fit logits"):
        fsm.softmax_cross_entropy(logits, labels.rename(time="frame"), "class")
    with pytest.raises(ValueError, match="labels does not fit logits"):
        fsm.softmax_cross_entropy(logits, labels.assign_coords(time=[3, 2, 1, 0]), "class")
    with pytest.raises(ValueError, match="where does not fit x"):
        fsm.softmax(logits, "class", where=xr.DataArray([True], dims="colour"))
    with pytest.raises(TypeError, match="axis"):
        fsm.softmax_cross_entropy(logits, labels, ("class", "time"))
