"""The functions of fastsoftmax in pure NumPy: the specification, the tests' oracle, a contender of the benchmarks.

Plain vectorised code that works in the result's dtype (float32 for the two half-precision ones). It
follows every rule of the library but makes none of its promises: 2 ULP, the same bits everywhere, speed.
"""

import operator
from typing import NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

__all__ = [
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "selected_log_softmax",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_grad",
    "softmax_cross_entropy_grad_hess",
    "softmax_cross_entropy_value_and_grad",
    "softmax_jacobian",
    "softmax_vjp",
]

# The infinities and NaNs that the rules speak of are no reason to warn.
_quiet = np.errstate(all="ignore")

# Python scalars take the dtype of the array beside them.
_WEAK = (bool, int, float, type(None))


# ---- Arguments and results --------------------------------------------------------------


def _any_array(value, name):
    """`value` as an array; an empty list, which has no dtype of its own, as one of integers."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: pass its data, and where=~mask")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from error
    return array.astype(np.int64) if array.size == 0 and isinstance(value, (list, tuple)) else array


def _array(value, name):
    """`value` as an array of a real dtype."""
    array = _any_array(value, name)
    if (array.dtype.kind not in "biuf" or array.dtype.char == "g") and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {array.dtype}, expected an integer, a bool or a float of at most 64 bits")
    return array


def _array_or_number(value, name):
    """The same of an argument that may be an int of any size, as the float it is near."""
    return _array(float(value) if type(value) is int else value, name)


def _number(value, name):
    array = _array_or_number(value, name)
    if array.ndim:
        raise TypeError(f"{name} has shape {array.shape}, expected a number")
    return float(array)


def _floating(dtype):
    """The dtype of a result."""
    return np.dtype(np.float64) if dtype.kind in "biu" else dtype.newbyteorder("=")


def _widened(array, dtype):
    """`array` in the dtype that results of `dtype` are computed in."""
    return array.astype(np.float32 if dtype.itemsize == 2 else dtype, copy=False)


def _from_the_front(axes, ndim):
    """Axes counted from the front. NumPy raises an AxisError for those of 32 bits that there are not, as here."""
    for axis in map(operator.index, axes):
        if not -ndim <= axis < ndim:
            raise np.exceptions.AxisError(axis, ndim)
    return normalize_axis_tuple(axes, ndim)


def _row_axes(axis, ndim):
    """The axes a row lies along, as a tuple. A 0-d array is one row and has the axes of a 1-d one."""
    if axis is None:
        return tuple(range(ndim))
    axes = _from_the_front(axis if isinstance(axis, tuple) else (axis,), max(ndim, 1))
    return axes if ndim else ()


def _one_axis(axis, array):
    if axis is None or isinstance(axis, tuple):
        raise TypeError(f"axis is {axis!r}, expected one int")
    if array.ndim == 0:
        raise ValueError("a scalar has no rows, expected an array of at least one dimension")
    return _from_the_front((axis,), array.ndim)[0]


def _mask(where, shape):
    mask = _any_array(True if where is None else where, "where")
    if mask.dtype != bool:
        raise TypeError(f"where has dtype {mask.dtype}, expected bool")
    return np.broadcast_to(mask, shape)


def _check_out(out, shape, dtype):
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out is a {type(out).__name__}, expected a numpy.ndarray")
    is_real = out.dtype.kind == "f" or out.dtype.name == "bfloat16"
    if not is_real or not np.can_cast(dtype, out.dtype, "same_kind"):
        raise TypeError(f"out has dtype {out.dtype}, which cannot take a result of dtype {dtype}")
    if out.shape != shape or not out.flags.writeable:
        raise ValueError(f"out is read-only or has shape {out.shape}, expected {shape}")


def _result(values, dtype, out=None):
    """`values` in the result's dtype: in `out`, or as an array, or a scalar of no dimension."""
    values = np.asarray(values)
    if out is None:
        return values.astype(dtype, copy=False)[()]
    _check_out(out, values.shape, dtype)
    out[...] = values
    return out


# ---- Softmax, log_softmax, logsumexp ----------------------------------------------------


def _distance(x, axes, temperature=1.0):
    """``(x - max) / temperature``: shifted first, so that a common offset costs no accuracy."""
    row_max = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
    distance = x - row_max
    if isinstance(temperature, float) and temperature == 1:
        return distance
    divisor = _array_or_number(temperature, "temperature").astype(np.float64)
    if not np.all((divisor > 0) & (divisor < np.inf)):
        raise ValueError("temperature is not positive and finite")
    divisor = np.broadcast_to(divisor, row_max.shape)
    # A distance beyond the largest number may be within it again once it is divided.
    scaled = np.where(np.isinf(distance), x / divisor - row_max / divisor, distance / divisor)
    return scaled.astype(x.dtype)


def _log_sum(distance, exponentials, axes):
    """``log(sum(exponentials))``; the largest, which are 1, are kept apart and the rest goes to log1p."""
    largest = distance == 0
    count = np.count_nonzero(largest, axis=axes, keepdims=True).astype(distance.dtype)
    rest = np.sum(np.where(largest, distance.dtype.type(0), exponentials), axis=axes, keepdims=True)
    return np.log(count) + np.log1p(rest / count)


def _elementwise(function, masked_result, x, axis, temperature, where, out):
    x = _array(x, "x")
    dtype, axes = _floating(x.dtype), _row_axes(axis, x.ndim)
    x = _widened(x, dtype)
    if where is None:
        return _result(function(x, axes, temperature), dtype, out)
    # An element that is masked takes no part in its row, and neither does -inf.
    mask = _mask(where, x.shape)
    masked = function(np.where(mask, x, x.dtype.type(-np.inf)), axes, temperature)
    return _result(np.where(mask, masked, masked_result), dtype, out)


def _softmax(x, axes, temperature):
    exponentials = np.exp(_distance(x, axes, temperature))
    return exponentials / np.sum(exponentials, axis=axes, keepdims=True)


def _log_softmax(x, axes, temperature):
    distance = _distance(x, axes, temperature)
    return distance - _log_sum(distance, np.exp(distance), axes)


@_quiet
def softmax(x, /, axis=-1, *, temperature=1.0, where=None, out=None):
    """``exp(x) / sum(exp(x))`` of each row of ``x / temperature``; 0 where masked."""
    return _elementwise(_softmax, 0, x, axis, temperature, where, out)


@_quiet
def log_softmax(x, /, axis=-1, *, temperature=1.0, where=None, out=None):
    """``x - log(sum(exp(x)))`` of each row of ``x / temperature``; -inf where masked."""
    return _elementwise(_log_softmax, -np.inf, x, axis, temperature, where, out)


@_quiet
def logsumexp(x, /, axis=-1, *, b=None, keepdims=False, return_sign=False, where=None, out=None):
    """``log(sum(b * exp(x)))`` of each row; with `return_sign` that of the sum's magnitude, and its sign."""
    x_array, b_array = _array(x, "x"), _array_or_number(True if b is None else b, "b")
    strong = [array.dtype for given, array in ((x, x_array), (b, b_array)) if type(given) not in _WEAK]
    dtype = strong[0] if strong else np.dtype(np.float64)
    if len(strong) == 2:  # what x * b is computed in
        dtype = np.multiply.resolve_dtypes((*strong, None))[-1]
    dtype = _floating(dtype)
    x, factors = np.broadcast_arrays(_widened(x_array, dtype), _widened(b_array, dtype))
    axes = _row_axes(axis, x.ndim)
    if where is not None or b is not None:
        # -inf takes no part, whatever its factor: an infinite one would make it NaN.
        taking_part = _mask(where, x.shape) & (factors != 0) & (x != -np.inf)
        x = np.where(taking_part, x, x.dtype.type(-np.inf))
        factors = np.where(taking_part, factors, x.dtype.type(0))
    row_max = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
    if b is None:
        distance = x - row_max
        values = row_max + _log_sum(distance, np.exp(distance), axes)
        values = np.where(np.isinf(row_max), row_max, values)
        sign = np.where(np.isnan(values), np.nan, row_max > -np.inf)
    else:
        values, sign = _weighted_log_sum(x, factors, row_max, axes)
    if not return_sign:
        values = np.where(sign < 0, np.nan, values)
    if not keepdims:
        values, sign = np.squeeze(values, axis=axes), np.squeeze(sign, axis=axes)
    values = _result(values, dtype, out)
    return (values, _result(sign, dtype)) if return_sign else values


def _weighted_log_sum(x, factors, row_max, axes):
    """``log(abs(s))`` and the sign of ``s = sum(factors * exp(x))``."""
    # The largest terms are kept apart, for log1p. In units of e**shift each is 1, but 0 or inf
    # where the max is infinite.
    shift = np.where(np.isfinite(row_max), row_max, x.dtype.type(0))
    largest = x == row_max
    top = np.sum(np.where(largest, factors * np.exp(row_max - shift), 0), axis=axes, keepdims=True)
    rest = np.sum(np.where(largest, 0, factors * np.exp(x - row_max)), axis=axes, keepdims=True)
    total = top + rest
    small_rest = abs(rest) < abs(top) / 2
    log_total = np.where(small_rest, np.log(abs(top)) + np.log1p(rest / top), np.log(abs(total)))
    return shift + log_total, np.sign(total)


@_quiet
def selected_log_softmax(logits, index, /, axis=-1, *, temperature=1.0, out=None):
    """``take_along_axis(log_softmax(logits), index, axis)``; `index` may lack `axis`."""
    logits, index = _array(logits, "logits"), _any_array(index, "index")
    axis, dtype = _one_axis(axis, logits), _floating(logits.dtype)
    if index.dtype.kind not in "iu":
        raise TypeError(f"index has dtype {index.dtype}, expected integers")
    lacks_axis = index.ndim == logits.ndim - 1
    picks = np.expand_dims(index, axis) if lacks_axis else index
    if picks.ndim != logits.ndim:
        raise ValueError(f"index has {index.ndim} dimensions, logits have {logits.ndim}")
    _check_range(picks, True, logits.shape[axis], "index")
    logp = _log_softmax(_widened(logits, dtype), (axis,), temperature)
    chosen = np.take_along_axis(logp, picks.astype(np.intp), axis)
    return _result(np.squeeze(chosen, axis) if lacks_axis else chosen, dtype, out)


# ---- Derivatives of softmax and log_softmax ---------------------------------------------


def _output_and_gradient(p, g, axis):
    p, g = _array(p, "the output"), _array(g, "g")
    if p.shape != g.shape:
        raise ValueError(f"g has shape {g.shape}, expected that of the output: {p.shape}")
    dtype = _floating(p.dtype)
    return _widened(p, dtype), _widened(g, dtype), _row_axes(axis, p.ndim), dtype


@_quiet
def softmax_vjp(p, g, /, axis=-1, *, out=None):
    """``p * (g - sum(g * p))``: the gradient `g` taken back through ``p = softmax(x)``."""
    p, g, axes, dtype = _output_and_gradient(p, g, axis)
    return _result(p * (g - np.sum(g * p, axis=axes, keepdims=True)), dtype, out)


@_quiet
def log_softmax_vjp(logp, g, /, axis=-1, *, out=None):
    """``g - exp(logp) * sum(g)``: the gradient `g` taken back through ``logp = log_softmax(x)``."""
    logp, g, axes, dtype = _output_and_gradient(logp, g, axis)
    return _result(g - np.exp(logp) * np.sum(g, axis=axes, keepdims=True), dtype, out)


@_quiet
def softmax_jacobian(p, /, axis=-1):
    """``diag(p) - outer(p, p)`` of each row, in two last axes."""
    p = _array(p, "p")
    dtype = _floating(p.dtype)
    p = np.moveaxis(_widened(p, dtype), _one_axis(axis, p), -1)
    diagonal = np.eye(p.shape[-1], dtype=p.dtype) * p[..., np.newaxis]
    return _result(diagonal - p[..., :, np.newaxis] * p[..., np.newaxis, :], dtype)


# ---- Cross-entropy ----------------------------------------------------------------------


class _Targets(NamedTuple):
    """What the labels ask of rows along the last axis: `dense` of every class, `at_label` more of the label."""

    dense: np.ndarray
    at_label: np.ndarray  # this and all below: one value a row
    label: np.ndarray
    share: np.ndarray  # of the row in the mean, and of its z-loss
    scale: np.ndarray  # of the row's whole loss
    counts: np.ndarray


def _check_range(labels, counts, n, name):
    bad = counts & ((labels < 0) | (labels >= n))
    if bad.any():
        position = tuple(int(i) for i in np.argwhere(bad)[0])
        raise IndexError(f"{name} at {position} is {labels[position]}, expected one in [0, {n})")


def _weights(value, shape, name):
    weights = np.ones(shape) if value is None else _array(value, name).astype(np.float64)
    if weights.shape != shape:
        raise ValueError(f"{name} has shape {weights.shape}, expected {shape}")
    return weights


def _rows(logits, labels, axis, weight, sample_weight, ignore_index=None, label_smoothing=0.0):
    """The logits with `axis` last, their `_Targets`, the axis and the result's dtype."""
    logits, labels = _array(logits, "logits"), _any_array(labels, "labels")
    axis, dtype = _one_axis(axis, logits), _floating(logits.dtype)
    x = np.moveaxis(_widened(logits, dtype), axis, -1)
    shape, n = x.shape[:-1], x.shape[-1]
    label_smoothing = _number(label_smoothing, "label_smoothing")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected a number from 0 to 1")
    class_weight = _weights(weight, (n,), "weight")
    scale = _weights(sample_weight, shape, "sample_weight")
    spread = label_smoothing / max(n, 1)
    if labels.shape == logits.shape:
        probabilities = np.moveaxis(_array(labels, "labels"), axis, -1).astype(np.float64)
        if ignore_index is not None:
            raise ValueError("ignore_index goes with class indices, not with class probabilities")
        dense = ((probabilities * (1 - label_smoothing) + spread) * class_weight).astype(x.dtype)
        none = np.zeros(shape)
        return x, _Targets(dense, none, none.astype(np.intp), none + 1, scale, scale != 0), axis, dtype
    if labels.shape != shape:
        raise ValueError(f"labels has shape {labels.shape}, expected {shape} (indices) or {logits.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels has dtype {labels.dtype}, expected integers for class indices")
    kept = np.ones(shape, bool)
    if ignore_index is not None:
        if not -(2**63) <= operator.index(ignore_index) < 2**64:
            raise ValueError(f"ignore_index is {ignore_index}, expected a 64-bit integer")
        kept = np.asarray(labels != operator.index(ignore_index))
    _check_range(labels, kept, n, "label")
    label = np.where(kept, labels, 0).astype(np.intp)
    share = class_weight[label] if n else np.zeros(shape)
    counts = kept & (scale != 0) & ((share != 0) | (label_smoothing != 0))
    dense = (spread * class_weight).astype(x.dtype)
    return x, _Targets(dense, share * (1 - label_smoothing), label, share, scale, counts), axis, dtype


def _product(target, logp):
    """``target * logp``, where 0 times -inf is 0."""
    return np.where((target == 0) & (logp == -np.inf), 0, target * logp)


def _cross_entropy(
    logits, labels, axis, with_gradient, grad_loss=None, out=None, /, *, weight=None, sample_weight=None,
    ignore_index=None, label_smoothing=0.0, z_loss=0.0, reduction="mean",
):  # fmt: skip
    """The loss, and the gradient where it is wanted."""
    x, targets, axis, dtype = _rows(logits, labels, axis, weight, sample_weight, ignore_index, label_smoothing)
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}, expected 'none', 'sum' or 'mean'")
    z_loss = _number(z_loss, "z_loss")
    if not np.isfinite(z_loss):
        raise ValueError(f"z_loss is {z_loss}, expected a finite number")
    upstream = _array_or_number(1.0 if grad_loss is None else grad_loss, "grad_loss")
    if upstream.ndim and (reduction != "none" or upstream.shape != targets.scale.shape):
        raise ValueError(f"grad_loss has shape {upstream.shape}, expected a scalar or the loss's shape")
    has_labels, is_dense = np.any(targets.at_label), np.ndim(labels) == x.ndim or np.any(targets.dense)
    label = targets.label[..., np.newaxis]

    row_max = np.max(x, axis=-1, keepdims=True, initial=-np.inf)
    distance = x - row_max
    exponentials = np.exp(distance)
    log_sum = _log_sum(distance, exponentials, -1)
    loss = np.zeros(x.shape[:-1])
    if has_labels:
        loss = -_product(targets.at_label, (np.take_along_axis(distance, label, -1) - log_sum)[..., 0])
    if is_dense:
        loss = loss - np.sum(_product(targets.dense, distance - log_sum), axis=-1)
    partition = np.where(np.isinf(row_max), row_max, row_max + log_sum)[..., 0]
    if z_loss:
        loss = loss + z_loss * targets.share * partition**2
    loss = np.where(targets.counts, loss * targets.scale, 0)
    denominator = 1.0
    if reduction == "mean":
        denominator = np.sum(np.where(targets.counts, targets.share * targets.scale, 0))
    reduced = loss if reduction == "none" else np.sum(loss, dtype=np.float64) / denominator
    if not with_gradient:
        return _result(reduced, dtype), None

    def of_rows(values):
        return np.asarray(values * upstream * targets.scale / denominator)[..., np.newaxis].astype(x.dtype)

    mass = targets.at_label + np.sum(np.broadcast_to(targets.dense, x.shape), axis=-1)
    slope = mass + 2 * z_loss * targets.share * partition if z_loss else mass
    gradient = exponentials * of_rows(slope / np.sum(exponentials, axis=-1))
    if is_dense:
        gradient -= targets.dense * of_rows(1)
    if has_labels:
        lowered = np.take_along_axis(gradient, label, -1) - of_rows(targets.at_label)
        np.put_along_axis(gradient, label, lowered, -1)
    gradient[~targets.counts] = 0
    return _result(reduced, dtype), _result(np.moveaxis(gradient, -1, axis), dtype, out)


@_quiet
def softmax_cross_entropy(logits, labels, /, axis=-1, **loss_options):
    """``-sum(labels * log_softmax(logits))`` of each row, weighted and reduced as the options say."""
    return _cross_entropy(logits, labels, axis, False, **loss_options)[0]


@_quiet
def softmax_cross_entropy_grad(logits, labels, /, axis=-1, *, grad_loss=None, out=None, **loss_options):
    """``(softmax(logits) - labels) * grad_loss``, weighted and divided as the loss is."""
    return _cross_entropy(logits, labels, axis, True, grad_loss, out, **loss_options)[1]


@_quiet
def softmax_cross_entropy_value_and_grad(logits, labels, /, axis=-1, *, grad_loss=None, out=None, **loss_options):
    """The results of `softmax_cross_entropy` and `softmax_cross_entropy_grad`."""
    return _cross_entropy(logits, labels, axis, True, grad_loss, out, **loss_options)


@_quiet
def softmax_cross_entropy_grad_hess(
    logits, labels, /, axis=-1, *, factor=1.0, min_hess=0.0, grad_out=None, hess_out=None, weight=None,
    sample_weight=None,
):  # fmt: skip
    """``(p - y) * w`` and ``max(factor * p * (1 - p) * w, min_hess)``, with w each row's weight."""
    x, targets, axis, dtype = _rows(logits, labels, axis, weight, sample_weight)
    is_dense = np.ndim(labels) == x.ndim
    if is_dense and weight is not None:
        raise ValueError("weight goes with class indices, not with class probabilities")
    if not 0 < factor < np.inf or not 0 <= min_hess < np.inf:
        raise ValueError(f"factor is {factor}, min_hess {min_hess}: expected finite ones, factor > 0, min_hess >= 0")
    for out in (grad_out, hess_out):
        if out is not None:
            _check_out(out, np.shape(logits), dtype)
    outs = grad_out is not None and hess_out is not None
    if outs and (grad_out is hess_out or np.shares_memory(grad_out, hess_out)):
        raise ValueError("grad_out and hess_out share memory, expected two different arrays")
    y = targets.dense if is_dense else np.arange(x.shape[-1]) == targets.label[..., np.newaxis]
    w = np.where(targets.counts, targets.share * targets.scale, 0)[..., np.newaxis].astype(x.dtype)
    p = _softmax(x, -1, 1.0)
    gradient = np.where(w == 0, 0, (p - y) * w)
    hessian = np.maximum(np.where(w == 0, 0, factor * p * (1 - p) * w), min_hess)
    return (
        _result(np.moveaxis(gradient, -1, axis), dtype, grad_out),
        _result(np.moveaxis(hessian, -1, axis), dtype, hess_out),
    )
