"""Every kind of array: axes, dtypes, memory layouts, `out`; what is refused, and that nothing is written then."""

import tracemalloc
import warnings

import numpy as np
import pytest

import fastsoftmax as fsm
from fastsoftmax import reference

try:
    import ml_dtypes

    HALF_DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
except ImportError:
    HALF_DTYPES = [np.dtype(np.float16)]

ELEMENTWISE = [fsm.softmax, fsm.log_softmax]


def softmax_by_rows(function, x, axes):
    """The function of each row alone, as contiguous as can be: what any axis and layout must give."""
    batch = [d for d in range(x.ndim) if d not in axes]
    order = [*batch, *axes]
    moved = np.ascontiguousarray(x.transpose(order)).astype(x.dtype.newbyteorder("="))
    rows = moved.reshape(int(np.prod([x.shape[d] for d in batch])), -1)
    results = np.stack([function(row) for row in rows]) if len(rows) else rows
    return results.reshape(moved.shape).transpose(np.argsort(order))


def logsumexp_by_rows(x, axes):
    batch = [d for d in range(x.ndim) if d not in axes]
    moved = np.ascontiguousarray(x.transpose([*batch, *axes])).astype(x.dtype.newbyteorder("="))
    shape = [x.shape[d] for d in batch]
    rows = moved.reshape(int(np.prod(shape)), -1)
    return np.array([fsm.logsumexp(row) for row in rows], moved.dtype).reshape(shape)


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param


@pytest.fixture
def x3(dtype):
    return np.random.default_rng(3).normal(0, 4, (3, 17, 5)).astype(dtype)


# ---- Axes -------------------------------------------------------------------------------

AXES = [0, 1, 2, -1, -2, -3, (0,), (1, 2), (2, 1), (0, 2), (-1, 0), (0, 1, 2), (2, 0, 1), None, ()]


def normalised(axis, ndim):
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in (axis if isinstance(axis, tuple) else (axis,)))


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.usefixtures("isa")
def test_axis(axis, x3, layout):
    x = layout(x3)
    axes = tuple(sorted(normalised(axis, 3)))
    for function in ELEMENTWISE:
        got = function(x, axis)
        assert got.shape == x3.shape
        assert got.dtype == x3.dtype  # native byte order
        np.testing.assert_array_equal(got, softmax_by_rows(function, x3, axes))
    got = fsm.logsumexp(x, axis)
    np.testing.assert_array_equal(got, logsumexp_by_rows(x3, axes))
    assert np.shape(got) == tuple(s for d, s in enumerate(x3.shape) if d not in axes)
    np.testing.assert_array_equal(np.asarray(x), x3)


def test_default_axis_is_the_last(x3):
    for function in (*ELEMENTWISE, fsm.logsumexp):
        np.testing.assert_array_equal(function(x3), function(x3, -1))
        np.testing.assert_array_equal(function(x3, axis=2), function(x3, 2))
        assert not np.array_equal(function(x3), function(x3, 0))


def test_order_of_a_tuple_does_not_matter(x3):
    for function in (*ELEMENTWISE, fsm.logsumexp):
        np.testing.assert_array_equal(function(x3, (0, 2)), function(x3, (2, 0)))
        np.testing.assert_array_equal(function(x3, (-1, -3)), function(x3, (0, 2)))


def test_axis_may_be_any_integer_object(x3):
    for axis in (np.int64(1), np.int8(1), np.array(1)[()]):
        np.testing.assert_array_equal(fsm.softmax(x3, axis), fsm.softmax(x3, 1))


@pytest.mark.parametrize("axis", [3, -4, (0, 3), (-4,), 2**40, -(2**70), 2**70])
def test_bad_axis(axis, x3):
    g = np.ones_like(x3)
    error = np.exceptions.AxisError
    for function in (*ELEMENTWISE, fsm.logsumexp):
        with pytest.raises(error):
            function(x3, axis)
    if isinstance(axis, tuple):
        return
    for call in (
        lambda: fsm.softmax_vjp(x3, g, axis),
        lambda: fsm.log_softmax_vjp(x3, g, axis),
        lambda: fsm.softmax_jacobian(x3, axis),
        lambda: fsm.softmax_cross_entropy(x3, np.zeros((3, 17), int), axis),
        lambda: fsm.softmax_cross_entropy_grad(x3, np.zeros((3, 17), int), axis),
        lambda: fsm.softmax_cross_entropy_value_and_grad(x3, np.zeros((3, 17), int), axis),
        lambda: fsm.softmax_cross_entropy_grad_hess(x3, np.zeros((3, 17), int), axis),
        lambda: fsm.selected_log_softmax(x3, np.zeros((3, 17), int), axis),
    ):
        with pytest.raises(error):
            call()


def test_bad_axis_of_a_zero_dimensional_array():
    for function in (*ELEMENTWISE, fsm.logsumexp):
        for axis in (1, -2):
            with pytest.raises(np.exceptions.AxisError):
                function(np.float32(1), axis)


@pytest.mark.parametrize("axis", [1.0, "0", [0, 1], (0.0,), 1.5])
def test_axis_of_a_wrong_kind(axis, x3):
    for function in (*ELEMENTWISE, fsm.logsumexp):
        with pytest.raises(TypeError, match=r"axis is .*, expected an int, a tuple of ints or None"):
            function(x3, axis)


def test_repeated_axis(x3):
    for function in (*ELEMENTWISE, fsm.logsumexp):
        with pytest.raises(ValueError, match="axis"):
            function(x3, (0, -3))


@pytest.mark.parametrize("axis", [None, (0, 1), (0,), 1.0, "1"])
def test_functions_of_one_axis(axis, x3):
    labels = np.zeros((3, 17), int)
    for call in (
        lambda: fsm.softmax_jacobian(x3, axis),
        lambda: fsm.softmax_cross_entropy(x3, labels, axis),
        lambda: fsm.softmax_cross_entropy_grad(x3, labels, axis),
        lambda: fsm.softmax_cross_entropy_value_and_grad(x3, labels, axis),
        lambda: fsm.softmax_cross_entropy_grad_hess(x3, labels, axis),
        lambda: fsm.selected_log_softmax(x3, labels, axis),
    ):
        with pytest.raises(TypeError, match="axis"):
            call()


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1), (1, 1, 3), (1, 1, 1), (5, 1), (1, 5), (1,), (2, 1, 3, 1)])
@pytest.mark.usefixtures("isa")
def test_axes_of_length_one(shape, dtype):
    """Strides of such axes mean nothing; libraries have read them all the same."""
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    for axis in range(len(shape)):
        for function in ELEMENTWISE:
            np.testing.assert_array_equal(function(x, axis), softmax_by_rows(function, x, (axis,)))
        np.testing.assert_array_equal(fsm.logsumexp(x, axis), logsumexp_by_rows(x, (axis,)))
        strides = [stride if n > 1 else 3 * stride + 8 for stride, n in zip(x.strides, shape, strict=True)]
        odd = np.lib.stride_tricks.as_strided(x, x.shape, strides)
        np.testing.assert_array_equal(fsm.softmax(odd, axis), fsm.softmax(x, axis))


# ---- Dimensions -------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, -1, None, ()])
@pytest.mark.parametrize("value", [2.5, np.float32(2.5), np.array(2.5), 3, True, np.float16(2)])
def test_zero_dimensions(value, axis):
    result_type = np.result_type(value).type if isinstance(value, np.generic) else np.float64
    for function, expected in ((fsm.softmax, 1.0), (fsm.log_softmax, 0.0), (fsm.logsumexp, float(value))):
        got = function(value, axis)
        assert type(got) is result_type
        assert abs(got - expected) <= 2 * np.spacing(result_type(expected))
    assert np.isnan(fsm.softmax(np.nan, axis))
    assert fsm.logsumexp(-np.inf, axis) == -np.inf
    out = np.empty(())
    assert fsm.softmax(value, axis, out=out) is out
    assert fsm.logsumexp(value, axis, out=out) is out
    assert abs(out - float(value)) <= 2 * np.spacing(float(value))


def test_full_reductions_are_scalars(x3, dtype):
    assert type(fsm.logsumexp(x3, None)) is dtype
    assert type(fsm.logsumexp(x3, (0, 1, 2))) is dtype
    assert type(fsm.logsumexp(x3[0, 0])) is dtype
    value, sign = fsm.logsumexp(x3[0, 0], return_sign=True)
    assert type(value) is type(sign) is dtype
    assert isinstance(fsm.logsumexp(x3, None, keepdims=True), np.ndarray)
    assert type(fsm.softmax_cross_entropy(x3[0], np.zeros(17, int))) is dtype
    assert type(fsm.softmax_cross_entropy(x3[0, 0], 1, reduction="none")) is dtype
    assert type(fsm.softmax_cross_entropy_value_and_grad(x3[0, 0], 1, reduction="sum")[0]) is dtype
    assert type(fsm.selected_log_softmax(x3[0, 0], 1)) is dtype
    assert type(fsm.logsumexp(np.zeros(3, np.float16))) is np.float16


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 0), (1, 0)])
def test_empty(shape, dtype):
    x = np.empty(shape, dtype)
    g = np.empty(shape, np.float64)
    for axis in (*range(len(shape)), None, ()):
        for function in ELEMENTWISE:
            for out in (None, np.empty_like(x)):
                got = function(x, axis, out=out)
                assert got.shape == shape
                assert got.dtype == dtype
        rows = np.shape(np.sum(x, axis))
        got = fsm.logsumexp(x, axis)
        assert np.shape(got) == rows
        assert np.all(got == -np.inf)
        assert fsm.softmax_vjp(x, g, axis).shape == shape
        assert fsm.log_softmax_vjp(x, g, axis).shape == shape
    for axis in range(len(shape)):
        n = shape[axis]
        batch = shape[:axis] + shape[axis + 1 :]
        assert fsm.softmax_jacobian(x, axis).shape == (*batch, n, n)
        if 0 in batch:
            labels = np.empty(batch, int)
            loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, labels, axis)
            assert np.isnan(loss)
            assert gradient.shape == shape
            assert fsm.softmax_cross_entropy(x, labels, axis, reduction="sum") == 0
            assert fsm.softmax_cross_entropy(x, labels, axis, reduction="none").shape == batch
            assert fsm.softmax_cross_entropy_grad_hess(x, labels, axis)[1].shape == shape
            assert fsm.selected_log_softmax(x, labels, axis).shape == batch
            loss = fsm.softmax_cross_entropy(x, np.empty(shape), axis, reduction="none")
            assert loss.shape == batch
        elif n == 0:
            with pytest.raises(IndexError):
                fsm.softmax_cross_entropy(x, np.zeros(batch, int), axis)
            with pytest.raises(IndexError):
                fsm.selected_log_softmax(x, np.zeros(batch, int), axis)
            picks = [0 if d == axis else s for d, s in enumerate(shape)]
            assert fsm.selected_log_softmax(x, np.empty(picks, int), axis).shape == tuple(picks)


def test_sixty_four_dimensions(dtype):
    shape = [1] * 64
    shape[3], shape[31], shape[63] = 2, 3, 4
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    plain = x.reshape(2, 3, 4)
    for axis, plain_axis in ((3, 0), (31, 1), (63, 2), ((3, 63), (0, 2)), (None, None), (-1, -1)):
        np.testing.assert_array_equal(fsm.softmax(x, axis).reshape(2, 3, 4), fsm.softmax(plain, plain_axis))
        np.testing.assert_array_equal(
            fsm.logsumexp(x, axis, keepdims=True).ravel(), np.ravel(fsm.logsumexp(plain, plain_axis))
        )
        np.testing.assert_array_equal(np.ravel(fsm.logsumexp(x, axis)), np.ravel(fsm.logsumexp(plain, plain_axis)))
    np.testing.assert_array_equal(
        np.ravel(fsm.logsumexp(x, b=np.abs(x))), np.ravel(fsm.logsumexp(plain, b=np.abs(plain)))
    )
    np.testing.assert_array_equal(
        fsm.softmax(x, temperature=np.full([1] * 64, 2.0), where=x > 0).reshape(2, 3, 4),
        fsm.softmax(plain, temperature=2.0, where=plain > 0),
    )
    labels = np.zeros(shape[:-1], int)
    np.testing.assert_array_equal(
        fsm.softmax_cross_entropy_grad(x, labels).reshape(2, 3, 4),
        fsm.softmax_cross_entropy_grad(plain, np.zeros((2, 3), int)),
    )
    np.testing.assert_array_equal(fsm.selected_log_softmax(x, labels).reshape(2, 3), fsm.log_softmax(plain)[..., 0])


def test_more_elements_than_an_int_can_count():
    """2**31 + 3 elements, of which the memory holds one."""
    count = 2**31 + 3
    x = np.broadcast_to(np.float32(1.5), (count,))
    exact = 1.5 + np.log(np.longdouble(count))
    with fsm.num_threads(2):
        assert abs(fsm.logsumexp(x) - exact) <= 2 * np.spacing(np.float32(exact))


@pytest.mark.parametrize("n", [1, 2, 3, 9, 40, 5000, 20_000])
def test_operands_that_repeat_a_row(isa, dtype, n):
    """A batch stride of 0 beside an axis that is no run of neighbours: rows begin where others do, none is left out."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((11, n)).astype(dtype)
    columns = x.T.copy()
    spread = rng.random((1, 2 * n)).astype(dtype)[:, ::2]
    for function in (
        fsm.softmax,
        lambda y: fsm.logsumexp(x, b=y),
        lambda y: fsm.softmax_vjp(x, y),
        lambda y: fsm.softmax_cross_entropy(x, y, reduction="none"),
        lambda y: fsm.logsumexp(columns, 0, b=y.T),
        lambda y: fsm.softmax_vjp(columns, y.T, 0),
    ):
        for y in (np.broadcast_to(spread, x.shape), np.broadcast_to(dtype(0.25), x.shape)):
            np.testing.assert_array_equal(function(y), function(y.copy()), err_msg=isa)
    np.testing.assert_array_equal(fsm.logsumexp(x, b=2.0), fsm.logsumexp(x, b=np.full_like(x, 2)), err_msg=isa)
    step, line = x.itemsize, rng.standard_normal(5 * n + 20).astype(dtype)
    overlapping = np.lib.stride_tricks.as_strided(line, (4, 3, n), (2 * step, step, 5 * step))
    np.testing.assert_array_equal(fsm.softmax(overlapping), fsm.softmax(overlapping.copy()), err_msg=isa)
    logits, labels = rng.standard_normal((6, 4, 1)).astype(dtype), rng.integers(0, 6, (1, 4, 5))
    logp = np.broadcast_to(fsm.log_softmax(logits, 0), (6, 4, 5))
    selected = fsm.selected_log_softmax(logits, labels, axis=0)
    np.testing.assert_array_equal(selected, np.take_along_axis(logp, labels, 0), err_msg=isa)


def test_broadcast_views(dtype):
    """Strides of 0 along rows and across them."""
    row = np.random.default_rng(0).normal(size=7).astype(dtype)
    repeated = np.broadcast_to(row, (5, 7))
    np.testing.assert_array_equal(fsm.softmax(repeated), np.tile(fsm.softmax(row), (5, 1)))
    np.testing.assert_array_equal(fsm.softmax(repeated.T, 0), np.tile(fsm.softmax(row), (5, 1)).T)
    np.testing.assert_array_equal(fsm.logsumexp(repeated), np.full(5, fsm.logsumexp(row)))
    stretched = np.broadcast_to(row[:, None], (7, 200))
    np.testing.assert_array_equal(fsm.softmax(stretched), fsm.softmax(stretched.copy()))
    np.testing.assert_array_equal(fsm.logsumexp(stretched, 0), fsm.logsumexp(stretched.copy(), 0))


def test_array_likes(dtype):
    nested = [[1.0, 2.0], [3.0, 4.5]]
    for function in (*ELEMENTWISE, fsm.logsumexp):
        np.testing.assert_array_equal(function(nested), function(np.array(nested)))
        np.testing.assert_array_equal(function(tuple(map(tuple, nested))), function(np.array(nested)))

    class Wrapped:
        def __array__(self, dtype=None, copy=None):
            return np.array(nested, np.float32)

    assert fsm.softmax(Wrapped()).dtype == np.float32
    np.testing.assert_array_equal(fsm.softmax(Wrapped()), fsm.softmax(np.array(nested, np.float32)))
    np.testing.assert_array_equal(fsm.softmax(memoryview(np.array(nested))), fsm.softmax(np.array(nested)))


def test_subclasses_become_plain_arrays(dtype):
    matrix = np.ones((2, 3), dtype).view(np.recarray)
    assert type(fsm.softmax(matrix)) is np.ndarray


# ---- Dtypes -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q"])
def test_integers_and_bool_are_taken_as_float64(kind):
    x = np.array([[0, 1, 1], [3, 0, 2]]).astype(kind)
    wide = x.astype(np.float64)
    for function in (*ELEMENTWISE, fsm.logsumexp):
        got = function(x)
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, function(wide))
    assert fsm.softmax_vjp(x, np.ones_like(x)).dtype == np.float64
    assert fsm.softmax_jacobian(x).dtype == np.float64
    assert fsm.softmax_cross_entropy_grad(x, [0, 1]).dtype == np.float64
    assert fsm.softmax_cross_entropy(x, [0, 1], reduction="none").dtype == np.float64
    assert fsm.selected_log_softmax(x, [0, 1]).dtype == np.float64


@pytest.mark.parametrize("half", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("width", [3, 40])
def test_half_precision_is_computed_in_float32(half, width):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 4, (5, width)).astype(half)
    b, g = rng.uniform(-1, 3, (5, width)).astype(half), rng.normal(size=(5, width)).astype(half)
    labels = rng.integers(0, width, 5)
    x32, b32, g32 = (a.astype(np.float32) for a in (x, b, g))
    calls = [
        lambda f, x, b, g: f.softmax(x),
        lambda f, x, b, g: f.softmax(x, 0, temperature=0.5),
        lambda f, x, b, g: f.log_softmax(x),
        lambda f, x, b, g: f.softmax(x, where=x > 0),
        lambda f, x, b, g: f.logsumexp(x),
        lambda f, x, b, g: f.logsumexp(x, b=b, return_sign=True)[0],
        lambda f, x, b, g: f.logsumexp(x, b=b, return_sign=True)[1],
        lambda f, x, b, g: f.softmax_vjp(x, g),
        lambda f, x, b, g: f.log_softmax_vjp(x, g),
        lambda f, x, b, g: f.softmax_jacobian(x),
        lambda f, x, b, g: f.softmax_cross_entropy(x, labels, reduction="none"),
        lambda f, x, b, g: f.softmax_cross_entropy_grad(x, labels, weight=b[0]),
        lambda f, x, b, g: f.softmax_cross_entropy_value_and_grad(x, labels, reduction="sum")[1],
        lambda f, x, b, g: f.softmax_cross_entropy_grad_hess(x, labels)[0],
        lambda f, x, b, g: f.softmax_cross_entropy_grad_hess(x, labels)[1],
        lambda f, x, b, g: f.selected_log_softmax(x, labels),
    ]
    for number, call in enumerate(calls):
        got = call(fsm, x, b, g)
        assert got.dtype == half, number
        with np.errstate(all="ignore"):
            expected = call(fsm, x32, b32, g32).astype(half)
        np.testing.assert_array_equal(got.astype(np.float32), expected.astype(np.float32), err_msg=str(number))
    out = np.empty_like(x)
    assert fsm.softmax(x, out=out) is out
    np.testing.assert_array_equal(out.astype(np.float32), fsm.softmax(x32).astype(half).astype(np.float32))


@pytest.mark.parametrize("half", HALF_DTYPES, ids=str)
def test_half_precision_does_not_warn(half):
    """Results beyond the half's range become 0 or -inf in silence."""
    with np.errstate(all="raise"):
        x = np.array([0, -30000, -60000], np.float32)
        with np.errstate(all="ignore"):
            x = x.astype(half)
        fsm.softmax(x, temperature=0.001)
        fsm.log_softmax(x, temperature=0.001)
        fsm.softmax_cross_entropy_value_and_grad(x, 1, reduction="sum", z_loss=1e9)


B_DTYPES = [*HALF_DTYPES, *map(np.dtype, ["f4", "f8", "i2", "i4", "i8", "u8", "?"])]


@pytest.mark.parametrize("first", B_DTYPES, ids=str)
@pytest.mark.parametrize("second", B_DTYPES, ids=str)
def test_b_takes_part_in_the_dtype(first, second):
    """That of NumPy's product, and float64 where it is of integers."""
    x, b = np.array([1, 2]).astype(first), np.array([2, 1]).astype(second)
    expected = (x * b).dtype
    if expected.kind in "iub":
        expected = np.dtype(np.float64)
    value, sign = fsm.logsumexp(x, b=b, return_sign=True)
    assert value.dtype == sign.dtype == reference.logsumexp(x, b=b).dtype == expected
    computed = np.promote_types(expected, np.float32)
    wide = fsm.logsumexp(x.astype(computed), b=b.astype(computed))
    np.testing.assert_array_equal(value.astype(computed), wide.astype(expected).astype(computed))


@pytest.mark.parametrize("half", [*HALF_DTYPES, np.dtype(np.float32), np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("scalar", [2.0, 2, True])
def test_python_scalars_are_weak(half, scalar):
    x = np.array([1, 2]).astype(half)
    assert fsm.logsumexp(x, b=scalar).dtype == half
    assert fsm.logsumexp(scalar, b=x).dtype == half
    assert fsm.logsumexp(scalar, b=scalar).dtype == np.float64


def test_numpy_scalars_are_not_weak():
    x = np.array([1, 2], np.float32)
    assert fsm.logsumexp(x, b=np.float64(2)).dtype == np.float64
    assert fsm.logsumexp(x, b=np.array(2.0)).dtype == np.float64
    assert fsm.logsumexp(np.float64(1), b=x).dtype == np.float64


def test_mixed_dtypes_of_the_other_arguments(dtype):
    """Gradients, weights and labels do not decide the result's dtype."""
    x = np.array([[1, 2, 3], [4, 5, 7]], dtype)
    for other in (np.float16, np.float32, np.float64, np.int64):
        g = np.array([[1, 2, 0], [1, 1, 1]], other)
        assert fsm.softmax_vjp(x, g).dtype == dtype
        assert fsm.log_softmax_vjp(x, g).dtype == dtype
        np.testing.assert_array_equal(fsm.softmax_vjp(x, g), fsm.softmax_vjp(x, g.astype(dtype)))
        loss, gradient = fsm.softmax_cross_entropy_value_and_grad(
            x, [0, 1], weight=g[0], sample_weight=g[1, :2], reduction="none", grad_loss=g[0, :2]
        )
        assert loss.dtype == gradient.dtype == dtype
        assert fsm.softmax_cross_entropy(x, np.array([[1, 0, 0], [0, 0, 1]], other)).dtype == dtype


REFUSED = {
    "complex64": np.ones((2, 3), np.complex64),
    "complex128": np.ones((2, 3), complex),
    np.dtype(np.longdouble).name: np.ones((2, 3), np.longdouble),
    "object": np.ones((2, 3), object),
    "str": np.full((2, 3), "1"),
    "bytes": np.full((2, 3), b"1"),
    "datetime64": np.ones((2, 3), "m8[s]").astype("M8[s]"),
    "timedelta64": np.ones((2, 3), "m8[s]"),
    "void": np.zeros((2, 3), [("a", "f4")]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_dtypes(name):
    x = REFUSED[name]
    good = np.ones((2, 3))
    labels = np.zeros(2, int)
    named = {"str": "<U1", "bytes": "S1", "void": "f4"}.get(name, name)
    calls = {
        "x": [lambda: fsm.softmax(x), lambda: fsm.log_softmax(x), lambda: fsm.logsumexp(x)],
        "b": [lambda: fsm.logsumexp(good, b=x)],
        "p": [lambda: fsm.softmax_vjp(x, good), lambda: fsm.softmax_jacobian(x)],
        "logp": [lambda: fsm.log_softmax_vjp(x, good)],
        "g": [lambda: fsm.softmax_vjp(good, x), lambda: fsm.log_softmax_vjp(good, x)],
        "logits": [
            lambda: fsm.softmax_cross_entropy(x, labels),
            lambda: fsm.softmax_cross_entropy_grad(x, labels),
            lambda: fsm.softmax_cross_entropy_value_and_grad(x, labels),
            lambda: fsm.softmax_cross_entropy_grad_hess(x, labels),
            lambda: fsm.selected_log_softmax(x, labels),
        ],
        "labels": [lambda: fsm.softmax_cross_entropy(good, x[:, 0])],
        "index": [lambda: fsm.selected_log_softmax(good, x[:, 0])],
    }
    if name != np.dtype(np.longdouble).name:  # a real dtype: labels and weights may have it
        calls["labels"].append(lambda: fsm.softmax_cross_entropy(good, x))
        calls["weight"] = [lambda: fsm.softmax_cross_entropy(good, labels, weight=x[0])]
        calls["sample_weight"] = [lambda: fsm.softmax_cross_entropy(good, labels, sample_weight=x[:, 0])]
        calls["grad_loss"] = [lambda: fsm.softmax_cross_entropy_grad(good, labels, reduction="none", grad_loss=x[:, 0])]
    for argument, functions in calls.items():
        for call in functions:
            with pytest.raises(TypeError) as error:
                call()
            assert argument in str(error.value)
            assert named in str(error.value)


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(np.ones((2, 3)), [[0, 0, 1], [0, 1, 0]])
    for call in (
        lambda: fsm.softmax(masked),
        lambda: fsm.log_softmax(masked),
        lambda: fsm.logsumexp(masked),
        lambda: fsm.logsumexp(np.ones((2, 3)), b=masked),
        lambda: fsm.softmax_vjp(masked, np.ones((2, 3))),
        lambda: fsm.softmax_vjp(np.ones((2, 3)), masked),
        lambda: fsm.softmax_jacobian(masked),
        lambda: fsm.softmax_cross_entropy(masked, [0, 1]),
        lambda: fsm.softmax_cross_entropy(np.ones((2, 3)), masked),
        lambda: fsm.selected_log_softmax(masked, [0, 1]),
    ):
        with pytest.raises(TypeError, match="where"):
            call()
    with pytest.raises(TypeError, match="out"):
        fsm.softmax(np.ones((2, 3)), out=masked)


def test_text_and_ragged_lists_are_refused():
    for bad in ("text", None, object()):
        with pytest.raises(TypeError):
            fsm.softmax(bad)
    with pytest.raises(ValueError, match="x is ragged"):
        fsm.softmax([[1, 2], [3]])
    with pytest.raises(ValueError, match="labels is ragged"):
        fsm.softmax_cross_entropy(np.ones((2, 3)), [[1, 2], [3]])


def test_only_ragged_lists_are_called_ragged():
    class Unreadable:
        def __array__(self, dtype=None, copy=None):
            raise ValueError("no values today")

    for name, call in {
        "x": lambda: fsm.softmax(Unreadable()),
        "labels": lambda: fsm.softmax_cross_entropy(np.ones((2, 3)), Unreadable()),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} cannot be read as a NumPy array: no values today$"):
            call()


def test_positional_and_keyword_arguments():
    x = np.ones(3)
    for call in (
        lambda: fsm.softmax(x=x),
        lambda: fsm.log_softmax(x=x),
        lambda: fsm.logsumexp(x=x),
        lambda: fsm.softmax(x, 0, 2.0),
        lambda: fsm.logsumexp(x, 0, x),
        lambda: fsm.softmax_vjp(p=x, g=x),
        lambda: fsm.softmax_cross_entropy(logits=x, labels=1),
        lambda: fsm.softmax_cross_entropy(x, 1, -1, None),
        lambda: fsm.softmax_cross_entropy(x, 1, unknown=3),
        lambda: fsm.softmax_cross_entropy(x, 1, grad_loss=3),
        lambda: fsm.softmax_cross_entropy(x, 1, out=np.empty(3)),
        lambda: fsm.softmax(),
    ):
        with pytest.raises(TypeError):
            call()


# ---- out --------------------------------------------------------------------------------


def calls_with_out(x):
    """Each function that has an `out`: a call, and the result's shape."""
    n = x.shape[-1]
    batch = x.shape[:-1]
    g = np.random.default_rng(1).normal(size=x.shape)
    labels = np.arange(int(np.prod(batch))).reshape(batch) % n
    soft = np.full(x.shape, 1 / n)
    picks = np.stack([labels, (labels + 1) % n], axis=-1)
    grad_hess = fsm.softmax_cross_entropy_grad_hess
    return {
        "softmax": (lambda x, out: fsm.softmax(x, out=out), x.shape),
        "softmax, axis 0": (lambda x, out: fsm.softmax(x, 0, out=out), x.shape),
        "softmax, axes": (lambda x, out: fsm.softmax(x, None, out=out), x.shape),
        "softmax, temperature": (lambda x, out: fsm.softmax(x, temperature=0.5, out=out), x.shape),
        "softmax, where": (lambda x, out: fsm.softmax(x, where=np.arange(n) % 3 > 0, out=out), x.shape),
        "log_softmax": (lambda x, out: fsm.log_softmax(x, out=out), x.shape),
        "logsumexp": (lambda x, out: fsm.logsumexp(x, out=out), batch),
        "logsumexp, b": (lambda x, out: fsm.logsumexp(x, b=2.0, out=out), batch),
        "logsumexp, keepdims": (lambda x, out: fsm.logsumexp(x, keepdims=True, out=out), (*batch, 1)),
        "softmax_vjp": (lambda x, out: fsm.softmax_vjp(x, g, out=out), x.shape),
        "log_softmax_vjp": (lambda x, out: fsm.log_softmax_vjp(x, g, out=out), x.shape),
        "gradient": (lambda x, out: fsm.softmax_cross_entropy_grad(x, labels, out=out), x.shape),
        "gradient, soft": (lambda x, out: fsm.softmax_cross_entropy_grad(x, soft, out=out), x.shape),
        "gradient, smooth": (
            lambda x, out: fsm.softmax_cross_entropy_grad(x, labels, label_smoothing=0.1, out=out),
            x.shape,
        ),
        "value_and_grad": (
            lambda x, out: fsm.softmax_cross_entropy_value_and_grad(x, labels, out=out)[1],
            x.shape,
        ),
        "grad_hess, grad": (lambda x, out: grad_hess(x, labels, grad_out=out)[0], x.shape),
        "grad_hess, hess": (lambda x, out: grad_hess(x, labels, hess_out=out)[1], x.shape),
        "selected": (lambda x, out: fsm.selected_log_softmax(x, picks, out=out), picks.shape),
        "selected, one": (lambda x, out: fsm.selected_log_softmax(x, labels, out=out), batch),
    }


OUT_CALLS = list(calls_with_out(np.ones((1, 2))))


@pytest.fixture(params=OUT_CALLS)
def out_call(request, x3):
    return calls_with_out(x3)[request.param]


def test_out_is_returned_in_any_layout(out_call, x3, layout):
    call, shape = out_call
    expected = call(x3, None)
    out = layout(np.full(shape, 7, x3.dtype))
    if not out.flags.writeable:
        return
    assert call(x3, out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("axis", [None, (0, 1), 0, 1, ()])
def test_out_whose_class_has_rules_of_its_own(dtype, axis):
    """A matrix stays of two dimensions whatever it is reshaped to: nothing may be written outside of it."""
    x = np.arange(6, dtype=dtype).reshape(2, 3)
    calls = [
        lambda out: fsm.softmax(x, axis, out=out),
        lambda out: fsm.log_softmax(x, axis, temperature=2, out=out),
        lambda out: fsm.softmax_vjp(x, x, axis, out=out),
        lambda out: fsm.log_softmax_vjp(x, x, axis, out=out),
    ]
    for call in calls:
        memory = np.full(400, 7, dtype)
        out = memory[100:106].reshape(2, 3).view(np.matrix)
        assert call(out) is out
        np.testing.assert_array_equal(np.asarray(out), call(None))
        assert np.all(memory[:100] == 7)
        assert np.all(memory[106:] == 7)


@pytest.mark.parametrize("out_dtype", ["f4", "f8", "f2", ">f4", ">f8", np.longdouble, *HALF_DTYPES], ids=str)
def test_out_of_another_dtype(out_call, x3, out_dtype):
    """What NumPy casts under same_kind."""
    call, shape = out_call
    out = np.empty(shape, out_dtype)
    assert call(x3, out) is out
    with np.errstate(all="ignore"):
        expected = call(x3, None).astype(out_dtype)
    np.testing.assert_array_equal(out.astype(np.float64), expected.astype(np.float64))


@pytest.mark.parametrize("out_dtype", ["i8", "i4", "?", "c8", "c16", "O", "U3", "m8[s]"])
def test_out_of_a_refused_dtype(out_call, x3, out_dtype):
    call, shape = out_call
    out = np.ones(shape).astype(out_dtype)
    before = out.copy()
    with pytest.raises(TypeError, match="out"):
        call(x3, out)
    assert np.all(out == before)


def test_out_of_a_wrong_type(out_call, x3):
    call, shape = out_call
    for out in ([0.0], (np.empty(shape),), "out", 1.0, np.float64(1), memoryview(np.empty(shape))):
        with pytest.raises(TypeError, match="out"):
            call(x3, out)


def test_out_of_a_wrong_shape(out_call, x3):
    call, shape = out_call
    wrong = [shape[:-1], (*shape, 1), (1, *shape), shape[::-1], (*shape[:-1], shape[-1] + 1), (1,) * len(shape)]
    for other in wrong:
        if other == shape:
            continue
        out = np.full(other, 7, x3.dtype)
        with pytest.raises(ValueError, match="out"):
            call(x3, out)
        assert np.all(out == 7)


def test_read_only_out(out_call, x3):
    call, shape = out_call
    room = np.full(shape, 7, x3.dtype)
    out = room.view()
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        call(x3, out)
    assert np.all(room == 7)


def test_value_and_grad_write_nothing_where_they_fail(x3):
    """A wrong second out, or a bad label, is found before the first is written."""
    labels = np.zeros((3, 17), int)
    grad_out, hess_out = np.full_like(x3, 7), np.full((3, 17, 6), 7, x3.dtype)
    with pytest.raises(ValueError, match="hess_out"):
        fsm.softmax_cross_entropy_grad_hess(x3, labels, grad_out=grad_out, hess_out=hess_out)
    assert np.all(grad_out == 7)
    read_only = np.full_like(x3, 7)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="hess_out"):
        fsm.softmax_cross_entropy_grad_hess(x3, labels, grad_out=grad_out, hess_out=read_only)
    assert np.all(grad_out == 7)


@pytest.mark.parametrize("count", [0, 3])
def test_outs_that_are_one_array(count, dtype):
    out = np.full((count, 4), 7, dtype)
    with pytest.raises(ValueError, match="two different arrays"):
        fsm.softmax_cross_entropy_grad_hess(np.zeros_like(out), np.zeros(count, int), grad_out=out, hess_out=out)
    assert np.all(out == 7)


def test_in_place(out_call, x3, layout):
    """The input itself as `out`, in any layout."""
    call, shape = out_call
    if shape != x3.shape:
        pytest.skip("the result has another shape")
    expected = call(x3, None)
    x = layout(x3.copy())
    if not x.flags.writeable:
        pytest.skip("a read-only input cannot be written")
    assert call(x, x) is x
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("shift", [-130, -17, -5, -1, 1, 2, 5, 13, 85, 200])
def test_overlapping_out(out_call, x3, shift):
    """The input some elements before or behind `out` in the same memory."""
    call, shape = out_call
    expected = call(x3, None)
    size = int(np.prod(shape))
    room = np.full(x3.size + size + 600, 7, x3.dtype)
    x = room[300 : 300 + x3.size].reshape(x3.shape)
    x[...] = x3
    out = room[300 + shift : 300 + shift + size].reshape(shape)
    assert call(x, out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("hop", [0, 1, 3])
def test_out_that_overlaps_itself(out_call, x3, hop):
    """What lies in one place is what was written last, as with NumPy's ufuncs; the input has been read before."""
    call, shape = out_call
    if shape != x3.shape:
        pytest.skip("the result has another shape")
    line = x3.ravel()[: 50 * hop + 5].copy()
    step = line.itemsize
    x = np.lib.stride_tricks.as_strided(line, x3.shape, (17 * hop * step, hop * step, step))
    expected = line.copy()
    np.copyto(np.lib.stride_tricks.as_strided(expected, x.shape, x.strides), call(x.copy(), None))
    assert call(x, x) is x
    np.testing.assert_array_equal(line, expected)


def test_out_reversed_over_the_input(out_call, x3):
    call, shape = out_call
    if shape != x3.shape:
        pytest.skip("the result has another shape")
    expected = call(x3, None)
    for flip in (lambda a: a[::-1], lambda a: a[..., ::-1], lambda a: a[:, ::-1]):
        x = x3.copy()
        out = flip(x)
        assert call(x, out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("columns", [slice(0, 5), slice(4, 9), slice(5, 10), slice(9, 4, -1), slice(1, 10, 2)])
def test_out_beside_the_input(out_call, x3, columns):
    """Views of one array: apart, touching, interleaved or overlapping, none of them contiguous."""
    call, shape = out_call
    if shape != x3.shape:
        pytest.skip("the result has another shape")
    expected = call(x3, None)
    room = np.full((*x3.shape[:2], 10), 7, x3.dtype)
    x, out = room[..., :5], room[..., columns]
    x[...] = x3
    others = room.copy()
    assert call(x, out) is out
    np.testing.assert_array_equal(out, expected)
    others[..., columns] = expected
    np.testing.assert_array_equal(room, others)


def test_out_transposed_over_the_input(dtype):
    square = np.random.default_rng(0).normal(size=(9, 9)).astype(dtype)
    for name, (call, shape) in calls_with_out(square).items():
        if shape != square.shape:
            continue
        expected = call(square, None)
        x = square.copy()
        out = x.T
        assert call(x, out) is out, name
        np.testing.assert_array_equal(out, expected, err_msg=name)


def test_out_overlapping_the_other_arguments(dtype):
    """Labels, weights, temperatures, masks, factors, picks: whatever is read may lie under `out`."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 16)).astype(dtype)
    g = rng.normal(size=(8, 16)).astype(dtype)
    itemsize = np.dtype(dtype).itemsize
    integer = np.dtype(f"i{itemsize}")

    def check(call, other):
        expected = call(other, None)
        room = np.zeros((8, 16), dtype)
        view = room.ravel().view(other.dtype)[: other.size].reshape(other.shape)
        view[...] = other
        assert call(view, room) is room
        np.testing.assert_array_equal(room, expected)

    labels = rng.integers(0, 16, 8).astype(integer)
    check(lambda g, out: fsm.softmax_vjp(x, g, out=out), g)
    check(lambda g, out: fsm.log_softmax_vjp(x, g, out=out), g)
    check(lambda g, out: fsm.softmax_vjp(x, g[::-1], out=out), g)
    check(lambda y, out: fsm.softmax_cross_entropy_grad(x, y, out=out), labels)
    check(lambda y, out: fsm.softmax_cross_entropy_grad(x, y, out=out), fsm.softmax(g))
    check(lambda w, out: fsm.softmax_cross_entropy_grad(x, labels, weight=w, out=out), g[0])
    check(lambda w, out: fsm.softmax_cross_entropy_grad(x, labels, sample_weight=w, out=out), np.arange(1.0, 9))
    check(
        lambda u, out: fsm.softmax_cross_entropy_grad(x, labels, reduction="none", grad_loss=u, out=out),
        np.arange(1.0, 9),
    )
    check(lambda t, out: fsm.softmax(x, temperature=t, out=out), np.arange(1.0, 9)[:, None])
    check(lambda t, out: fsm.log_softmax(x, temperature=t, out=out), np.arange(1.0, 9)[:, None])
    check(lambda m, out: fsm.softmax(x, where=m, out=out), rng.random((8, 16)) < 0.5)
    check(lambda y, out: fsm.selected_log_softmax(x, y, out=out), rng.integers(0, 16, (8, 16)).astype(integer))
    check(lambda y, out: fsm.softmax_cross_entropy_grad_hess(x, y, hess_out=out)[1], labels)

    room = np.zeros(8, dtype)
    b = np.arange(1, 9).astype(dtype)
    expected = fsm.logsumexp(x, 1, b=b[:, None])
    room[...] = b
    assert fsm.logsumexp(x, 1, b=room[:, None], out=room) is room
    np.testing.assert_array_equal(room, expected)


def test_two_outs_over_the_inputs(dtype):
    """grad_out in place of the logits, hess_out over the labels' rows."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 5)).astype(dtype), fsm.softmax(rng.normal(size=(8, 5)).astype(dtype))
    gradient, hessian = fsm.softmax_cross_entropy_grad_hess(x, y)
    for swap in (False, True):
        a, b = x.copy(), y.copy()
        outs = (b, a) if swap else (a, b)
        got = fsm.softmax_cross_entropy_grad_hess(a, b, grad_out=outs[0], hess_out=outs[1])
        assert got[0] is outs[0]
        assert got[1] is outs[1]
        np.testing.assert_array_equal(got[0], gradient)
        np.testing.assert_array_equal(got[1], hessian)
    both = np.zeros((8, 10), dtype)
    got = fsm.softmax_cross_entropy_grad_hess(x, y, grad_out=both[:, ::2], hess_out=both[:, 1::2])
    np.testing.assert_array_equal(both[:, ::2], gradient)
    np.testing.assert_array_equal(both[:, 1::2], hessian)
    with pytest.raises(ValueError, match="out"):
        fsm.softmax_cross_entropy_grad_hess(x, y, grad_out=a, hess_out=a)
    with pytest.raises(ValueError, match="out"):
        fsm.softmax_cross_entropy_grad_hess(x, y, grad_out=a, hess_out=a[:])


# ---- Inputs -----------------------------------------------------------------------------


def test_inputs_are_not_modified(layout, dtype):
    rng = np.random.default_rng(0)
    originals = {
        "x": rng.normal(size=(6, 11)).astype(dtype),
        "g": rng.normal(size=(6, 11)).astype(dtype),
        "labels": rng.integers(0, 11, 6),
        "weight": rng.uniform(1, 2, 11),
        "sample_weight": rng.uniform(1, 2, 6),
        "temperature": rng.uniform(1, 2, (6, 1)),
        "mask": rng.random((6, 11)) < 0.8,
    }
    a = {name: layout(value.copy()) for name, value in originals.items()}
    soft = layout(fsm.softmax(originals["g"]))
    options = {"weight": a["weight"], "sample_weight": a["sample_weight"], "z_loss": 0.1}
    fsm.softmax(a["x"], temperature=a["temperature"], where=a["mask"])
    fsm.log_softmax(a["x"], temperature=a["temperature"], where=a["mask"])
    fsm.softmax(a["x"])
    fsm.log_softmax(a["x"], 0)
    fsm.logsumexp(a["x"], b=a["g"], where=a["mask"], return_sign=True)
    fsm.softmax_vjp(a["x"], a["g"])
    fsm.log_softmax_vjp(a["x"], a["g"])
    fsm.softmax_jacobian(a["x"])
    for labels in (a["labels"], soft):
        fsm.softmax_cross_entropy_value_and_grad(a["x"], labels, label_smoothing=0.1, **options)
        fsm.softmax_cross_entropy_grad_hess(a["x"], labels, sample_weight=a["sample_weight"])
    fsm.selected_log_softmax(a["x"], a["labels"], temperature=a["temperature"])
    for name, value in originals.items():
        np.testing.assert_array_equal(np.asarray(a[name]), value, err_msg=name)
    np.testing.assert_array_equal(soft, fsm.softmax(originals["g"]))


def test_every_argument_in_every_layout(layout, dtype):
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=(6, 11)).astype(dtype), rng.normal(size=(6, 11)).astype(dtype)
    labels, picks = rng.integers(0, 11, 6), rng.integers(0, 11, (6, 3))
    weight, sample_weight = rng.uniform(1, 2, 11), rng.uniform(1, 2, 6)
    mask, temperature = rng.random((6, 11)) < 0.8, rng.uniform(1, 2, (6, 1))
    calls = [
        lambda a: fsm.softmax(a(x), temperature=a(temperature), where=a(mask)),
        lambda a: fsm.logsumexp(a(x), b=a(g), where=a(mask), return_sign=True)[0],
        lambda a: fsm.softmax_vjp(a(x), a(g)),
        lambda a: fsm.log_softmax_vjp(a(x), a(g)),
        lambda a: fsm.softmax_jacobian(a(x)),
        lambda a: fsm.softmax_cross_entropy_grad(
            a(x),
            a(labels),
            weight=a(weight),
            sample_weight=a(sample_weight),
            reduction="none",
            grad_loss=a(sample_weight),
        ),
        lambda a: fsm.softmax_cross_entropy_grad(a(x), a(fsm.softmax(g)), weight=a(weight)),
        lambda a: fsm.softmax_cross_entropy_grad_hess(a(x), a(labels), weight=a(weight))[1],
        lambda a: fsm.selected_log_softmax(a(x), a(picks)),
        lambda a: fsm.selected_log_softmax(a(x), a(labels)),
    ]
    for number, call in enumerate(calls):
        np.testing.assert_array_equal(call(layout), call(lambda value: value), err_msg=str(number))


def test_no_warning_about_anything(dtype):
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        x = np.array([[np.nan, np.inf, 1], [-np.inf] * 3, [1e38, -1e38, 0], [1e-40, 0, -1e-40]])
        with np.errstate(all="ignore"):
            x = x.astype(dtype)
        for function in (*ELEMENTWISE, fsm.logsumexp):
            function(x)
            function(x, 0)
            function(x, None)
        fsm.softmax_vjp(x, x)
        fsm.log_softmax_vjp(x, x)
        fsm.softmax_jacobian(x)
        fsm.softmax_cross_entropy_value_and_grad(x, [0, 1, 2, 0], label_smoothing=0.5, z_loss=1)
        fsm.softmax_cross_entropy_value_and_grad(x, x)
        fsm.softmax_cross_entropy_grad_hess(x, [0, 1, 2, 0], sample_weight=[0, 1, 2, np.nan])
        fsm.softmax_cross_entropy(x[:0], np.zeros(0, int))
        fsm.selected_log_softmax(x, [0, 1, 2, 0])
        out = np.empty(x.shape, np.float16)
        fsm.log_softmax(x, out=out)
        fsm.softmax(x, out=out)


# ---- What the library and its reference have in common -----------------------------------


@pytest.mark.parametrize("f", [fsm, reference], ids=["fastsoftmax", "reference"])
def test_minus_infinity_is_absent_whatever_its_factor(f, dtype):
    inf = np.inf
    x = np.array([[-inf, 1.0], [-inf, 1.0], [-inf, -inf], [-inf, -inf], [1.0, -inf], [np.nan, -inf]], dtype)
    b = np.array([[inf, 2.0], [np.nan, 2.0], [inf, 1.0], [np.nan, -inf], [inf, -inf], [1.0, np.nan]], dtype)
    values, signs = f.logsumexp(x, b=b, return_sign=True)
    twice = 1 + np.log(2.0)
    np.testing.assert_allclose(values, [twice, twice, -inf, -inf, inf, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(signs, [1, 1, 0, 0, 1, np.nan])
    np.testing.assert_array_equal(f.logsumexp(x.T, 0, b=b.T), values)
    np.testing.assert_allclose(f.logsumexp(x[0], b=inf), inf)
    np.testing.assert_array_equal(f.logsumexp(x[2], b=dtype(np.nan)), -inf)


@pytest.mark.parametrize("f", [fsm, reference], ids=["fastsoftmax", "reference"])
def test_large_ints_and_ragged_lists(f):
    x = np.float32([1, 2])
    np.testing.assert_allclose(f.logsumexp(x, b=10**30), 71.39085, rtol=1e-6)
    np.testing.assert_allclose(f.softmax(x, temperature=10**20), [0.5, 0.5])
    gradient = f.softmax_cross_entropy_grad(x, 0, grad_loss=10**20)
    np.testing.assert_allclose(gradient, f.softmax_cross_entropy_grad(x, 0) * np.float32(1e20), rtol=1e-6)
    ragged = [[1, 2], [3]]
    for name, call in {
        "x": lambda: f.softmax(ragged),
        "b": lambda: f.logsumexp(x, b=ragged),
        "where": lambda: f.softmax(x, where=ragged),
        "labels": lambda: f.softmax_cross_entropy(np.ones((2, 2)), ragged),
        "index": lambda: f.selected_log_softmax(np.ones((2, 2)), ragged),
        "weight": lambda: f.softmax_cross_entropy(np.ones((2, 2)), [0, 1], weight=ragged),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} "):
            call()


def test_scalar_factor_takes_no_memory(dtype):
    """b is broadcast and never made into an array of x's size."""
    x = np.random.default_rng(0).normal(size=(300, 1000)).astype(dtype)
    factors = (2.0, -3.0, np.full((1, 1000), dtype(2.0)), np.full((300, 1), dtype(-2.0)))
    for b in factors:
        tracemalloc.start()
        fsm.logsumexp(x, b=b, return_sign=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < x.nbytes / 4
    np.testing.assert_array_equal(fsm.logsumexp(x, b=2.0), fsm.logsumexp(x, b=np.full_like(x, 2.0)))


@pytest.mark.parametrize("axis", [(0, 1), (0, 2), None, ()])
def test_scalar_factor_on_any_axes(axis, x3):
    for b in (2.0, x3.dtype.type(1e-30)):
        expected = fsm.logsumexp(x3, axis, b=np.full_like(x3, b))
        np.testing.assert_array_equal(fsm.logsumexp(x3, axis, b=b), expected)
