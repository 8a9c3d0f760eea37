"""Lazy results from lazy arrays of Dask.

Where the axis lies in one chunk the kernels do a chunk's rows as they do any array's. Where it is split, maxima
and sums go through Dask's tree reductions, whose order depends on the chunks alone, and everything is computed
in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import BoundArguments
from typing import Any

import dask.array as da
import numpy as np

from fastsoftmax import _core
from fastsoftmax._adapters import Result
from fastsoftmax._arrays import (
    as_ndarray,
    common_shape,
    computed_in,
    floating_dtype,
    real_array,
    row_axes,
    single_axis,
    temperatures,
)
from fastsoftmax._losses import Reduction, checked_ignore_index, checked_scalars, near_one

Lazy = Any  # a dask.array.Array: Dask has no types to check against
Axes = tuple[int, ...]


def call(function: Callable[..., Any], results: tuple[Result, ...], bound: BoundArguments) -> Any:
    first, x = next(iter(bound.arguments.items()))
    _array(x, first)  # raises where its chunks would be refused
    lazy = _LAZY.get(function.__name__)
    if lazy is not None:
        return lazy(*bound.args, **bound.kwargs)
    # The others take a lazy array as they take any array_like: they compute it first.
    bound.arguments[first] = np.asarray(x)
    return function(*bound.args, **bound.kwargs)


# ---- Arguments --------------------------------------------------------------------------


def _in_one_chunk(x: Lazy, axes: Axes) -> bool:
    return all(x.numblocks[d] == 1 for d in axes)


def _map(function: Callable[..., Any], dtype: Any, x: Lazy, *others: Any, chunks: Any = None) -> Lazy:
    """The function of each chunk of x and those of the others that go with it; what is no lazy array goes to all."""
    return da.map_blocks(function, x, *others, dtype=dtype, meta=np.empty((0,) * x.ndim, dtype), chunks=chunks)


def _cast(x: Lazy, dtype: np.dtype[Any]) -> Lazy:
    return _map(functools.partial(_quiet_cast, dtype), dtype, x)


@np.errstate(all="ignore")
def _quiet_cast(dtype: np.dtype[Any], x: Any) -> Any:
    return np.asarray(x).astype(dtype)


def _array(value: Any, name: str) -> Any:
    """A lazy array as it is, anything else as an ndarray; masked ones are refused."""
    if not isinstance(value, da.Array):
        return as_ndarray(value, name)
    as_ndarray(value._meta, name)
    return value


def _refuse_unknown_sizes(x: Lazy, name: str) -> None:
    """What goes along with x must be cut as it is."""
    if any(np.isnan(size) for size in x.shape):
        raise ValueError(f"{name} goes with an array whose chunks are of unknown sizes: call its compute_chunk_sizes()")


def _like(x: Lazy, value: Any, name: str, axes: Axes = ()) -> Lazy:
    """A lazy array of the shape and in the chunks of x, of length 1 along `axes`."""
    _refuse_unknown_sizes(x, name)
    lazy = da.asarray(_array(value, name))
    shape = tuple(1 if d in axes else size for d, size in enumerate(x.shape))
    try:
        lazy = da.broadcast_to(lazy, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {lazy.shape}, expected one that broadcasts to {shape}") from None
    return lazy.rechunk(tuple((1,) if d in axes else sizes for d, sizes in enumerate(x.chunks)))


def _mask(where: Any, x: Lazy) -> Lazy | None:
    if where is None:
        return None
    mask = _like(x, where, "where")
    if mask.dtype != np.bool_:
        raise TypeError(f"where has dtype {mask.dtype}, expected bool")
    return mask


def _refuse_out(out: Any) -> None:
    if out is not None:
        raise TypeError(f"out is a {type(out).__name__}, expected None: the result of a Dask array is a lazy one")


# ---- softmax and log_softmax ------------------------------------------------------------


def softmax(x: Lazy, axis: Any, temperature: Any, where: Any, out: Any) -> Lazy:
    return _elementwise(_core.softmax, np.exp, 0.0, x, axis, temperature, where, out)


def log_softmax(x: Lazy, axis: Any, temperature: Any, where: Any, out: Any) -> Lazy:
    return _elementwise(_core.log_softmax, np.positive, -np.inf, x, axis, temperature, where, out)


def _elementwise(
    function: Callable[..., Any],
    from_logarithm: Callable[[Any], Any],
    masked_result: float,
    x: Lazy,
    axis: Any,
    temperature: Any,
    where: Any,
    out: Any,
) -> Lazy:
    """`function` of rows in one chunk; from_logarithm(log_softmax) of rows in many."""
    _refuse_out(out)
    dtype = floating_dtype(x.dtype, "x")
    axes = row_axes(axis, x.ndim)
    temperature = _array(temperature, "temperature")
    if temperature.ndim:
        temperature = _like(x, temperature, "temperature", axes)
    else:
        temperatures(temperature, (), ())
    mask = _mask(where, x)
    if _in_one_chunk(x, axes):
        return _map(functools.partial(_whole_rows, function, axes), dtype, x, temperature, mask)
    shifted, _, log_sum = _normaliser(x if mask is None else da.where(mask, x, -np.inf), axes, temperature)
    result = _map(functools.partial(_from_normaliser, from_logarithm, dtype), dtype, shifted, log_sum)
    return result if mask is None else da.where(mask, result, dtype.type(masked_result))


def _whole_rows(function: Callable[..., Any], axes: Axes, x: Any, temperature: Any, where: Any) -> Any:
    return function(x, axes, temperature=temperature, where=where)


def _normaliser(x: Lazy, axes: Axes, temperature: Any = 1.0) -> tuple[Lazy, Lazy, Lazy]:
    """(x - max) / temperature, the maximum and the logarithm of the sum of the first one's exponentials."""
    wide = x.astype(np.float64)
    largest = functools.partial(np.max, initial=-np.inf)  # unlike Dask's own, of no element too
    row_max = da.reduction(wide, largest, largest, axes, keepdims=True, dtype=np.float64)
    shifted = _map(functools.partial(_shifted, axes), np.float64, wide, row_max, temperature)
    return shifted, row_max, _log_sum(shifted, axes)["logarithm"]


@np.errstate(all="ignore")
def _shifted(axes: Axes, x: Any, row_max: Any, temperature: Any) -> Any:
    if np.ndim(temperature):
        temperatures(temperature, x.shape, axes)  # raises where one is not positive and finite
    return (x - row_max) / temperature


@np.errstate(all="ignore")
def _from_normaliser(from_logarithm: Callable[[Any], Any], dtype: np.dtype[Any], shifted: Any, log_sum: Any) -> Any:
    return from_logarithm(shifted - log_sum).astype(dtype)


# ---- logsumexp --------------------------------------------------------------------------


def logsumexp(
    x: Lazy, axis: Any, b: Any, keepdims: bool, return_sign: bool, where: Any, out: Any
) -> Lazy | tuple[Lazy, Lazy]:
    _refuse_out(out)
    dtype = floating_dtype(x.dtype, "x")
    if b is not None:
        if type(b) not in (bool, int, float):  # Python's scalars are weak
            b = _array(b, "b")
            floating_dtype(b.dtype, "b")
            dtype = floating_dtype(np.result_type(x.dtype, b.dtype), "x and b together")
        _refuse_unknown_sizes(x, "b")
        try:
            shape = common_shape(x.shape, np.shape(b))
        except ValueError:
            raise ValueError(f"x and b have shapes {x.shape} and {np.shape(b)}, which do not broadcast") from None
        x = da.broadcast_to(x, shape)
        b = _like(x, b, "b").astype(computed_in(dtype))
    axes = row_axes(axis, x.ndim)
    mask = _mask(where, x)
    if mask is not None and b is None:
        x = da.where(mask, x, dtype.type(-np.inf))
    elif mask is not None:
        b = da.where(mask, b, b.dtype.type(0))
    result = _log_sum(x.astype(computed_in(dtype) if _in_one_chunk(x, axes) else np.float64), axes, b, keepdims)
    value, sign = _cast(result["logarithm"], dtype), _cast(result["sign"], dtype)
    if return_sign:
        return value, sign
    return value if b is None else _map(_nan_where_negative, dtype, value, sign)


def _log_sum(x: Lazy, axes: Axes, b: Lazy | None = None, keepdims: bool = True) -> Lazy:
    """Logarithm and sign of sum(b * exp(x)), as two fields."""
    dtype = _pair(x.dtype)
    return da.reduction(
        x,
        chunk=_partial_log_sum,
        combine=_combined_log_sum,
        aggregate=_combined_log_sum,
        axis=axes,
        keepdims=keepdims,
        weights=b,
        dtype=dtype,
        meta=np.empty((0,) * (x.ndim if keepdims else x.ndim - len(axes)), dtype),
    )


def _partial_log_sum(x: Any, weights: Any = None, *, axis: Axes, keepdims: bool) -> Any:
    if weights is None:
        logarithm, sign = _core.logsumexp(x, axis, keepdims=keepdims), 1.0
    else:
        logarithm, sign = _core.logsumexp(x, axis, b=weights, keepdims=keepdims, return_sign=True)
    result = np.empty(np.shape(logarithm), _pair(x.dtype))
    result["logarithm"], result["sign"] = logarithm, sign
    return result


def _combined_log_sum(partial: Any, *, axis: Axes, keepdims: bool) -> Any:
    return _partial_log_sum(partial["logarithm"], partial["sign"], axis=axis, keepdims=keepdims)


def _pair(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype([("logarithm", dtype), ("sign", dtype)])


def _nan_where_negative(value: Any, sign: Any) -> Any:
    return np.where(sign < 0, value.dtype.type(np.nan), value)


# ---- Cross-entropy ----------------------------------------------------------------------


def softmax_cross_entropy(
    logits: Lazy,
    labels: Any,
    axis: int,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
) -> Lazy:
    dtype = floating_dtype(logits.dtype, "logits")
    axis = single_axis(axis, logits.ndim, "logits")
    smoothing, z = checked_scalars(label_smoothing, z_loss, reduction)
    _refuse_unknown_sizes(logits, "labels")
    rows_shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    targets = _array(labels, "labels")
    floating_dtype(targets.dtype, "labels")
    is_index = targets.shape == rows_shape
    if is_index and targets.dtype.kind not in "iu":
        raise TypeError(f"labels (class indices) has dtype {targets.dtype}, expected an integer one")
    if not is_index and targets.shape != logits.shape:
        raise ValueError(
            f"labels has shape {targets.shape}, expected {rows_shape} (class indices) "
            f"or {logits.shape} (class probabilities)"
        )
    ignored = None
    if ignore_index is not None:
        ignored = checked_ignore_index(ignore_index, targets.dtype if is_index else None)
    row_weight = np.ones(()) if sample_weight is None else _array(sample_weight, "sample_weight")
    floating_dtype(row_weight.dtype, "sample_weight")
    if sample_weight is not None:
        if row_weight.shape != rows_shape:
            raise ValueError(f"sample_weight has shape {row_weight.shape}, expected {rows_shape}")
        if reduction == "mean" and isinstance(row_weight, np.ndarray):
            row_weight = near_one(row_weight.astype(np.float64))
        row_weight = np.expand_dims(row_weight, axis)
    n = logits.shape[axis]
    class_weight = np.ones(n) if weight is None else real_array(weight, "weight", np.dtype(np.float64))
    if class_weight.shape != (n,):
        raise ValueError(f"weight has shape {class_weight.shape}, expected ({n},), one for each class")
    if reduction == "mean" and is_index:
        class_weight = near_one(class_weight)

    # From here on what has one value a row keeps the axis, at length 1.
    row_weight = _like(logits, row_weight, "sample_weight", (axis,)).astype(np.float64)
    label_weight: Any = 1.0
    if is_index:
        targets = _like(logits, np.expand_dims(targets, axis), "labels", (axis,))
        targets = _map(functools.partial(_checked_labels, n, ignored), targets.dtype, targets)
        label_weight = _map(functools.partial(np.take, class_weight, mode="clip"), np.float64, targets)
        if ignored is not None:
            row_weight = da.where(targets == ignored, 0.0, row_weight)
    else:
        targets = _like(logits, targets, "labels")

    one_value = (*logits.chunks[:axis], (1,) * logits.numblocks[axis], *logits.chunks[axis + 1 :])
    if _in_one_chunk(logits, (axis,)):
        chosen = None if weight is None else class_weight
        options = {"weight": chosen, "ignore_index": ignored, "label_smoothing": smoothing, "z_loss": z}
        function = functools.partial(_whole_losses, axis, is_index, options)
        computed = computed_in(dtype)
        losses = _map(function, computed, logits.astype(computed), targets, row_weight, chunks=one_value)
    else:
        shifted, row_max, log_sum = _normaliser(logits, (axis,))
        along_axis = [-1 if d == axis else 1 for d in range(logits.ndim)]
        classes = da.arange(n, chunks=(logits.chunks[axis],)).reshape(along_axis)
        class_weights = da.from_array(class_weight, chunks=(logits.chunks[axis],)).reshape(along_axis)
        function = functools.partial(_partial_losses, axis, is_index, smoothing, n)
        partial = _map(function, np.float64, shifted, log_sum, targets, classes, class_weights, chunks=one_value)
        losses = partial.sum(axis=axis, keepdims=True)
        losses = _map(
            functools.partial(_finished_losses, z), np.float64, losses, row_max, log_sum, label_weight, row_weight
        )
    losses = losses.squeeze(axis)
    if reduction == "none":
        return _cast(losses, dtype)
    total = da.reduction(losses, _sum, _sum, dtype=np.float64)
    if reduction == "mean":
        counted = da.where(row_weight == 0, 0.0, row_weight * label_weight).sum()
        total = _map(_quotient, np.float64, total, counted)
    return _cast(total, dtype)


def _checked_labels(n: int, ignored: int | None, labels: Any) -> Any:
    wrong = (labels < 0) | (labels >= n)
    if ignored is not None:
        wrong &= labels != ignored
    if wrong.any():
        raise IndexError(f"labels holds {labels[wrong].flat[0]}, expected classes in [0, {n})")
    return labels


def _whole_losses(axis: int, is_index: bool, options: Any, logits: Any, targets: Any, row_weight: Any) -> Any:
    labels = targets.squeeze(axis) if is_index else targets
    losses = _core.softmax_cross_entropy(
        logits, labels, axis, sample_weight=row_weight.squeeze(axis), reduction="none", **options
    )
    return np.expand_dims(losses, axis)


@np.errstate(all="ignore")
def _partial_losses(
    axis: int,
    is_index: bool,
    smoothing: float,
    n: int,
    shifted: Any,
    log_sum: Any,
    labels: Any,
    classes: Any,
    class_weights: Any,
) -> Any:
    """Each row's sum of -target * log_softmax over the classes of one chunk."""
    target = ((classes == labels if is_index else labels) * (1 - smoothing) + smoothing / n) * class_weights
    return np.where(target == 0, 0, -target * (shifted - log_sum)).sum(axis, keepdims=True)


@np.errstate(all="ignore")
def _finished_losses(z: float, losses: Any, row_max: Any, log_sum: Any, label_weight: Any, row_weight: Any) -> Any:
    if z:
        losses = losses + np.where(label_weight == 0, 0, z * label_weight * (row_max + log_sum) ** 2)
    return np.where(row_weight == 0, 0, row_weight * losses)


@np.errstate(all="ignore")
def _sum(x: Any, axis: Axes, keepdims: bool) -> Any:
    return np.sum(x, axis, np.float64, keepdims=keepdims)


@np.errstate(all="ignore")
def _quotient(total: Any, counted: Any) -> Any:
    return np.divide(total, counted)


_LAZY: dict[str, Callable[..., Lazy]] = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "softmax_cross_entropy": softmax_cross_entropy,
}
