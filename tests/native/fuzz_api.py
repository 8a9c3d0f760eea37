"""Atheris target: any public function with any arguments, from the bytes. Run by long.py.

    python tests/native/fuzz_api.py -runs=100000 -max_len=300

A call may return or raise TypeError, ValueError or IndexError; it never warns, never changes
its arguments, writes to `out` only if it succeeds, and does the same, to the bit, for the same
values in any other layout and through `out`.
"""

import sys
import warnings
import zlib

import atheris
import numpy as np

with atheris.instrument_imports(include=["fastsoftmax"]):
    import fastsoftmax as fsm

REFUSALS = (TypeError, ValueError, IndexError)
# Dtypes, most of them welcome; each with the range of the small numbers.
LOGITS = ["f4"] * 8 + ["f8"] * 6 + ["f2", ">f4", "i1", "u8", "?", "c8", "O"], -9, 9
LABELS = ["i8"] * 4 + ["i1", "u1", "i4", "u8", ">i2"] * 2 + ["f8"], 0, 2
MASKS = ["?"] * 7 + ["i1"], 0, 1


def some_shape(give):
    return tuple(give.ConsumeIntInRange(0, 6) for _ in range(give.PickValueInList([0, 1, 2, 2, 2, 3])))


def some_array(give, shape, kind):
    """Of small numbers, or of any bit patterns; what the bytes do not give is 0."""
    dtypes, least, most = kind
    dtype = np.dtype(give.PickValueInList(dtypes))
    if dtype.kind == "O" or give.ConsumeIntInRange(0, 2):
        values = [give.ConsumeIntInRange(least, most) for _ in range(int(np.prod(shape)))]
        with np.errstate(all="ignore"):
            return np.array(values, np.int64).astype(dtype).reshape(shape)
    size = int(np.prod(shape)) * dtype.itemsize
    data = give.ConsumeBytes(size).ljust(size, b"\0")
    if dtype.kind == "b":
        data = bytes(byte & 1 for byte in data)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def other_shape(give, shape, axis):
    """Most often one that fits: the shape itself, or that of one value a row."""
    kind = give.ConsumeIntInRange(0, 9)
    if kind < 4:
        return shape
    if kind == 9 or not shape:
        return some_shape(give)
    at = axis % len(shape) if isinstance(axis, int) else len(shape) - 1
    return shape[:at] + ((1,) if kind == 4 else ()) + shape[at + 1 :]


def some_call(give):
    """A function, its arguments, and whether it takes `out`."""
    shape = some_shape(give)
    axis = give.PickValueInList([-1, -1, -1, -1, -1, 0, 0, 0, 1, 1, None, (0, 1), (), 5, 0.5])
    x = some_array(give, shape, LOGITS)

    def numbers():
        return some_array(give, other_shape(give, shape, axis), LOGITS)

    def labels():
        return some_array(give, other_shape(give, shape, axis), LABELS if give.ConsumeIntInRange(0, 3) else LOGITS)

    def scalar():
        return give.PickValueInList([1.0, 0.5, 0.25, 1, 0, True, 1e30, -1, float("nan"), "1"])

    def scalar_or_numbers():
        return scalar() if give.ConsumeBool() else numbers()

    options = {
        "temperature": scalar_or_numbers,
        "where": lambda: some_array(give, other_shape(give, shape, axis), MASKS),
        "b": scalar_or_numbers,
        "keepdims": give.ConsumeBool,
        "return_sign": give.ConsumeBool,
        "weight": lambda: some_array(give, (x.shape[-1] if shape else 1,), LOGITS),
        "sample_weight": scalar_or_numbers,
        "grad_loss": scalar_or_numbers,
        "ignore_index": lambda: give.PickValueInList([0, 1, 2, -100, 2**70, 0.5]),
        "label_smoothing": scalar,
        "z_loss": scalar,
        "factor": scalar,
        "min_hess": scalar,
        "reduction": lambda: give.PickValueInList(["none", "none", "sum", "mean", "max"]),
    }
    loss = ["weight", "sample_weight", "ignore_index", "label_smoothing", "z_loss", "reduction"]
    # Each function's name, its other arguments, its options, and whether it has an `out`.
    name, others, names, has_out = give.PickValueInList(
        [
            ("softmax", [], ["temperature", "where"], True),
            ("log_softmax", [], ["temperature", "where"], True),
            ("logsumexp", [], ["b", "keepdims", "where", "return_sign"], True),
            ("softmax_vjp", [numbers], [], True),
            ("log_softmax_vjp", [numbers], [], True),
            ("softmax_jacobian", [], [], False),
            ("softmax_cross_entropy", [labels], loss, False),
            ("softmax_cross_entropy_grad", [labels], [*loss, "grad_loss"], True),
            ("softmax_cross_entropy_value_and_grad", [labels], [*loss, "grad_loss"], True),
            ("softmax_cross_entropy_grad_hess", [labels], ["factor", "min_hess", "weight", "sample_weight"], False),
            ("selected_log_softmax", [labels], ["temperature"], True),
        ]
    )
    arguments = [x, *(make() for make in others), axis]
    return (
        getattr(fsm, name),
        arguments,
        {key: options[key]() for key in names if give.ConsumeIntInRange(0, 3) == 0},
        has_out,
    )


def outcome(function, arguments, options):
    """What it returns, as arrays, or the class of its error."""
    try:
        result = function(*arguments, **options)
    except REFUSALS as error:
        return type(error)
    return [np.asarray(part) for part in (result if isinstance(result, tuple) else (result,))]


def assert_same(first, second):
    assert isinstance(first, list) == isinstance(second, list), (first, second)
    if isinstance(first, list):
        for a, b in zip(first, second, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    else:
        assert first is second, (first, second)


def laid_out(give, value):
    """The same values, elsewhere and in another order of memory."""
    if not isinstance(value, np.ndarray) or not value.ndim:
        return value
    kind = give.ConsumeIntInRange(0, 3)
    if kind == 0:
        return np.asfortranarray(value)
    if kind == 1:
        return np.flip(np.flip(value).copy())
    if kind == 2 and value.dtype.kind != "O":
        room = np.empty(value.nbytes + 1, np.uint8)[1:]
        room[:] = np.frombuffer(value.tobytes(), np.uint8)
        return room.view(value.dtype).reshape(value.shape)
    return np.repeat(value, 2, -1)[..., ::2]


def checksum(values):
    return [zlib.crc32(value.tobytes()) for value in values if isinstance(value, np.ndarray)]


def test_one_input(data):
    give = atheris.FuzzedDataProvider(data)
    function, arguments, options, has_out = some_call(give)
    given = [*arguments, *options.values()]
    before = checksum(given)
    first = outcome(function, arguments, options)
    assert checksum(given) == before, "an argument has changed"
    others = [laid_out(give, value) for value in arguments]
    assert_same(first, outcome(function, others, {key: laid_out(give, value) for key, value in options.items()}))
    if not has_out:
        return
    if isinstance(first, list):
        index = 1 if function is fsm.softmax_cross_entropy_value_and_grad else 0
        out = laid_out(give, np.zeros(first[index].shape, first[index].dtype))
        assert_same(first, outcome(function, arguments, {**options, "out": out}))
        np.testing.assert_array_equal(out, first[index])
    else:
        out = np.full(np.shape(arguments[0]), 7, np.float32)
        if isinstance(outcome(function, arguments, {**options, "out": out}), type):
            assert np.all(out == 7), "out was written before an error"


if __name__ == "__main__":
    warnings.simplefilter("error")
    fsm.set_num_threads(1)
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
