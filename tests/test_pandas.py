"""DataFrame and Series: the array's own bits, with their labels."""

import numpy as np
import pytest

import fastsoftmax as fsm
from fastsoftmax import special

pd = pytest.importorskip("pandas")


@pytest.fixture(params=[np.float32, np.float64, np.int64])
def frame(request):
    values = np.random.default_rng(0).normal(0, 4, (3, 4)).astype(request.param)
    return pd.DataFrame(values, index=pd.Index(["a", "b", "c"], name="row"), columns=[2.5, "x", "x", None])


def check(got, expected, index, columns=None):
    kind = pd.Series if columns is None else pd.DataFrame
    assert type(got) is kind
    np.testing.assert_array_equal(got.to_numpy(), expected)
    assert got.to_numpy().dtype == expected.dtype
    assert got.index.identical(index)
    if columns is not None:
        assert got.columns.identical(columns)


@pytest.mark.parametrize("function", [fsm.softmax, fsm.log_softmax, special.softmax])
@pytest.mark.parametrize("axis", [0, 1, -1, None, (0, 1), ()])
def test_elements_keep_index_and_columns(function, axis, frame):
    check(function(frame, axis), function(frame.to_numpy(), axis), frame.index, frame.columns)


def test_series_keep_index_and_name():
    series = pd.Series([1.0, 2.0, 4.0], index=list("abc"), name="logits", dtype=np.float32)
    for function in (fsm.softmax, fsm.log_softmax):
        got = function(series)
        check(got, function(series.to_numpy()), series.index)
        assert got.name == "logits"
    assert type(fsm.logsumexp(series)) is np.float32
    assert fsm.logsumexp(series) == fsm.logsumexp(series.to_numpy())
    assert fsm.selected_log_softmax(series, 1) == fsm.log_softmax(series)["b"]


def test_logsumexp_over_the_remaining_labels(frame):
    values = frame.to_numpy()
    check(fsm.logsumexp(frame), fsm.logsumexp(values), frame.index)
    check(fsm.logsumexp(frame, 0), fsm.logsumexp(values, 0), frame.columns)
    for got, expected in zip(
        fsm.logsumexp(frame, b=-1, return_sign=True), fsm.logsumexp(values, b=-1, return_sign=True), strict=True
    ):
        check(got, expected, frame.index)
    assert fsm.logsumexp(frame, None) == fsm.logsumexp(values, None)
    assert special.logsumexp(frame) == fsm.logsumexp(values, None)
    kept = fsm.logsumexp(frame, keepdims=True)  # no labels fit
    assert type(kept) is np.ndarray
    np.testing.assert_array_equal(kept, fsm.logsumexp(values, keepdims=True))


def test_a_result_that_is_no_row_of_the_frame_has_no_labels():
    series = pd.Series([1.0, 2.0])
    b = np.array([[1.0, 2.0], [3.0, 4.0]])
    got = fsm.logsumexp(series, b=b)
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, fsm.logsumexp(series.to_numpy(), b=b))


@pytest.mark.parametrize("axis", [0, 1])
def test_losses_and_gradients(axis, frame):
    x = frame.to_numpy()
    rows = frame.axes[1 - axis]
    labels = pd.Series(np.arange(len(rows)) % 3, index=rows)
    weights = pd.Series(np.linspace(1, 2, len(rows)), index=rows)
    options = {"label_smoothing": 0.1, "reduction": "none"}
    plain = fsm.softmax_cross_entropy_value_and_grad(
        x, labels.to_numpy(), axis, sample_weight=weights.to_numpy(), **options
    )
    loss, gradient = fsm.softmax_cross_entropy_value_and_grad(frame, labels, axis, sample_weight=weights, **options)
    check(loss, plain[0], rows)
    check(gradient, plain[1], frame.index, frame.columns)
    check(fsm.softmax_cross_entropy(frame, labels, axis, sample_weight=weights, **options), plain[0], rows)
    assert fsm.softmax_cross_entropy(frame, labels, axis) == fsm.softmax_cross_entropy(x, labels.to_numpy(), axis)
    soft = fsm.softmax(-frame, axis)
    check(
        fsm.softmax_cross_entropy_grad(frame, soft, axis),
        fsm.softmax_cross_entropy_grad(x, soft.to_numpy(), axis),
        frame.index,
        frame.columns,
    )
    for got, expected in zip(
        fsm.softmax_cross_entropy_grad_hess(frame, labels, axis),
        fsm.softmax_cross_entropy_grad_hess(x, labels.to_numpy(), axis),
        strict=True,
    ):
        check(got, expected, frame.index, frame.columns)
    check(fsm.selected_log_softmax(frame, labels, axis), fsm.selected_log_softmax(x, labels.to_numpy(), axis), rows)
    p = fsm.softmax(frame, axis)
    for function in (fsm.softmax_vjp, fsm.log_softmax_vjp):
        check(function(p, frame, axis), function(p.to_numpy(), x, axis), frame.index, frame.columns)


def test_several_picks_a_row_are_a_plain_array():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(3, 2)))
    assert type(fsm.selected_log_softmax(frame, np.array([[0, 1], [1, 0], [1, 1]]))) is np.ndarray


def test_masks(frame):
    mask = frame > 0
    check(
        fsm.softmax(frame, where=mask), fsm.softmax(frame.to_numpy(), where=mask.to_numpy()), frame.index, frame.columns
    )


def test_out_is_returned_as_it_is(frame):
    out = np.empty(frame.shape)
    assert fsm.softmax(frame, out=out) is out
    assert fsm.softmax_cross_entropy_grad_hess(frame, [0, 1, 2], hess_out=out)[1] is out
    np.testing.assert_array_equal(fsm.softmax(frame, out=out), fsm.softmax(frame.to_numpy()).astype(out.dtype))


def test_out_is_an_ndarray(frame):
    out = pd.DataFrame(np.zeros(frame.shape), frame.index, frame.columns)
    with pytest.raises(TypeError, match=r"^out is a DataFrame, expected a numpy\.ndarray"):
        fsm.softmax(frame, out=out)
    for name in ("grad_out", "hess_out"):
        with pytest.raises(TypeError, match=f"^{name} is a DataFrame"):
            fsm.softmax_cross_entropy_grad_hess(frame, [0, 1, 2], **{name: out})
    assert not out.to_numpy().any()


def test_other_labels_are_refused():
    frame = pd.DataFrame(np.zeros((3, 2)), index=list("abc"))
    shuffled = pd.Series([0, 1, 1], index=list("cab"))
    for call in (
        lambda: fsm.softmax_cross_entropy(frame, shuffled),
        lambda: fsm.softmax_cross_entropy_grad(frame, shuffled),
        lambda: fsm.selected_log_softmax(frame, shuffled),
    ):
        with pytest.raises(ValueError, match=r"(labels|index) has other labels than logits"):
            call()
    with pytest.raises(ValueError, match="sample_weight has other labels than logits"):
        fsm.softmax_cross_entropy(frame, [0, 1, 1], sample_weight=shuffled)
    with pytest.raises(ValueError, match="where has other labels than x"):
        fsm.softmax(frame, where=(frame == 0)[::-1])
    assert fsm.softmax_cross_entropy(frame, shuffled.to_numpy()) == np.log(2)


def test_labels_go_with_the_axis_they_meet():
    """A square frame: the labels of one axis fit the shape of the other."""
    frame = pd.DataFrame([[1.0, 2.0], [4.0, 8.0]], index=list("ab"), columns=list("cd"))
    x = frame.to_numpy()
    rows, columns = pd.Series([0, 1], index=frame.index), pd.Series([0, 1], index=frame.columns)
    for call in (
        lambda: fsm.softmax(frame, where=frame.T > 0),
        lambda: fsm.softmax(frame, where=rows > 0),
        lambda: fsm.softmax(frame, 0, temperature=rows + 1),
        lambda: fsm.logsumexp(frame, b=rows),
        lambda: fsm.softmax_vjp(frame, frame.T),
        lambda: fsm.softmax_cross_entropy(frame, columns),
        lambda: fsm.softmax_cross_entropy(frame, rows, 0),
        lambda: fsm.softmax_cross_entropy(frame, frame.T),
        lambda: fsm.softmax_cross_entropy(frame, rows, weight=rows),
        lambda: fsm.softmax_cross_entropy(frame, columns, 0, weight=columns),
        lambda: fsm.softmax_cross_entropy(frame, rows, sample_weight=columns),
        lambda: fsm.softmax_cross_entropy_grad(frame, rows, grad_loss=columns, reduction="none"),
        lambda: fsm.selected_log_softmax(frame, columns),
        lambda: fsm.logsumexp(frame["c"], b=frame),
    ):
        with pytest.raises(ValueError, match="has other labels than"):
            call()
    check(
        fsm.softmax(frame, where=columns > 0), fsm.softmax(x, where=np.array([False, True])), frame.index, frame.columns
    )
    check(fsm.logsumexp(frame, b=columns), fsm.logsumexp(x, b=np.array([0, 1])), frame.index)
    for axis, (one_a_row, one_a_class) in enumerate([(columns, rows), (rows, columns)]):
        check(
            fsm.softmax_cross_entropy(frame, one_a_row, axis, weight=one_a_class, reduction="none"),
            fsm.softmax_cross_entropy(x, [0, 1], axis, weight=[0, 1], reduction="none"),
            one_a_row.index,
        )


@pytest.mark.parametrize(
    ("nullable", "dtype"), [("Float32", np.float32), ("Float64", np.float64), ("Int64", np.float64)]
)
def test_nullable_numbers(nullable, dtype):
    frame = pd.DataFrame([[1, 2], [3, None]], index=list("ab"), dtype=nullable)
    check(fsm.softmax(frame), fsm.softmax(np.array([[1, 2], [3, np.nan]], dtype)), frame.index, frame.columns)
    series = frame[1]
    check(fsm.softmax(series), fsm.softmax(np.array([2, np.nan], series.to_numpy().dtype)), series.index)


def test_nullable_masks_indices_and_mixed_columns():
    """Without NA they are the booleans and integers that they hold."""
    frame = pd.DataFrame({"u": [0.0, 2.0], "v": [1.0, 3.0]}).astype("Float64")
    values = frame.to_numpy(np.float64)
    check(fsm.softmax(frame, where=frame > 1), fsm.softmax(values, where=values > 1), frame.index, frame.columns)
    index = pd.DataFrame([[1], [0]]).astype("Int64")
    expected = fsm.selected_log_softmax(values, index.to_numpy(np.int64))
    np.testing.assert_array_equal(fsm.selected_log_softmax(frame, index.to_numpy(np.int64)), expected)
    np.testing.assert_array_equal(
        fsm.selected_log_softmax(frame, pd.DataFrame([[1, 0], [0, 0]], columns=frame.columns).astype("Int64")),
        fsm.selected_log_softmax(values, [[1, 0], [0, 0]]),
    )
    mixed = pd.DataFrame({"a": pd.arrays.SparseArray([0.0, 1.0]), "b": pd.array([1, 2], dtype="Int64")})
    check(fsm.softmax(mixed), fsm.softmax([[0.0, 1.0], [1.0, 2.0]]), mixed.index, mixed.columns)


def test_bad_arguments(frame):
    with pytest.raises(np.exceptions.AxisError):
        fsm.softmax(frame, 2)
    with pytest.raises(TypeError, match="x has dtype object"):
        fsm.softmax(pd.DataFrame({"a": [1.0], "b": ["text"]}))
    with pytest.raises(TypeError, match="axis"):
        fsm.softmax_cross_entropy(frame, [0, 1, 2], None)
    with pytest.raises(TypeError):
        fsm.softmax(frame, unknown=1)


def test_the_frame_is_not_changed_by_its_result(frame):
    before = frame.copy()
    got = fsm.softmax(frame)
    got.iloc[0, 0] = 7
    pd.testing.assert_frame_equal(frame, before)
