"""The general way of the cross-entropy functions, and the boosting libraries' pair."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax import _core
from fastsoftmax._adapters import adapts_containers
from fastsoftmax._arrays import (
    Array,
    apart_from,
    as_ndarray,
    check_out,
    computed_in,
    deliver,
    floating_dtype,
    integer_array,
    integer_if_empty,
    outside,
    readable,
    real_array,
    real_number,
    share_memory,
    single_axis,
    target_for,
    weak_scalar,
)

Reduction = Literal["none", "sum", "mean"]

# Magnitudes of a row's factors, alone and multiplied, that leave room in float32's range (2**-126 to 2**128) for the
# losses and probabilities they go with.
SMALLEST_FACTOR, LARGEST_FACTOR = 2.0**-80, 2.0**80
# The same of a gradient's factor. For each class: it is divided by the sum of exponentials, which kernels keep times
# 2**64, and must not be subnormal then. And where an exponential is 0, below 2**-189 of the largest, its gradient must
# be so small as well: below 2**-125.
SMALLEST_GRADIENT_FACTOR, LARGEST_GRADIENT_FACTOR = 2.0**-61, 2.0**64


class LossOptions(TypedDict, total=False):
    """What the three loss functions have in common."""

    weight: ArrayLike | None
    sample_weight: ArrayLike | None
    ignore_index: int | None
    label_smoothing: float
    z_loss: float
    reduction: Reduction


@dataclass
class _Rows:
    """Logits and labels, checked, as a kernel takes them."""

    logits: Array
    dtype: np.dtype[Any]  # of the results
    axis: int
    indices: Array | None  # class indices, or
    probabilities: Array | None
    class_weight: Array | None  # this and all below: float64
    sample_weight: Array | None
    grad_loss: Array | None = None  # one a row

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the loss."""
        return self.logits.shape[: self.axis] + self.logits.shape[self.axis + 1 :]

    def keep_apart(self, outs: list[Array]) -> None:
        """Copy whatever writing `outs` would change before it is read."""
        self.logits = apart_from(self.logits, outs, in_place=True)
        self.indices = apart_from(self.indices, outs)
        self.probabilities = apart_from(self.probabilities, outs)
        self.class_weight = apart_from(self.class_weight, outs)
        self.sample_weight = apart_from(self.sample_weight, outs)
        self.grad_loss = apart_from(self.grad_loss, outs)

    def beyond_float32(self, has_gradient: bool, upstream: float | Array | None = None) -> Array | None:
        """Rows of float32 whose factors, with a further one, are out of its range; None where none is, as a rule."""
        if self.logits.dtype == np.float64:
            return None
        smallest = SMALLEST_GRADIENT_FACTOR * self.logits.shape[self.axis] if has_gradient else SMALLEST_FACTOR
        smallest_weight = largest_weight = 1.0
        factors: list[tuple[float | Array, float]] = []
        if self.class_weight is not None:
            magnitudes = np.abs(self.class_weight)
            magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
            smallest_weight, largest_weight = magnitudes.min(initial=1), magnitudes.max(initial=1)
            factors.append((1.0, smallest if upstream is None and self.sample_weight is None else SMALLEST_FACTOR))
        if self.sample_weight is not None:
            factors.append((self.sample_weight, smallest if upstream is None else SMALLEST_FACTOR))
        if upstream is not None:
            with np.errstate(all="ignore"):
                factors.append((upstream if self.sample_weight is None else self.sample_weight * upstream, smallest))
        high = (LARGEST_GRADIENT_FACTOR if has_gradient else LARGEST_FACTOR) / largest_weight
        found = (outside(np.asarray(factor), low / smallest_weight, high) for factor, low in factors)
        parts = [part for part in found if part is not None]
        if not any(part.any() for part in parts):
            return None
        return np.broadcast_to(functools.reduce(np.logical_or, parts), self.shape)

    def in_float64(self) -> _Rows:
        """The same for float64's kernels."""
        probabilities = None if self.probabilities is None else self.probabilities.astype(np.float64)
        return replace(self, logits=self.logits.astype(np.float64), probabilities=probabilities)

    def in_two_parts(self, beyond: Array) -> tuple[_Rows, _Rows]:
        """All rows twice: in float32 where those `beyond` do not count, and in float64 where only they do."""
        weight = np.ones(self.shape) if self.sample_weight is None else self.sample_weight
        narrow = replace(self, sample_weight=np.where(beyond, 0.0, weight))
        return narrow, replace(self.in_float64(), sample_weight=np.where(beyond, weight, 0.0))

    def run(self, operation: int, **options: Any) -> float:
        """Run the kernel; a label out of range is an IndexError that says which."""
        class_weight = self.class_weight
        if class_weight is not None:
            class_weight = np.ascontiguousarray(readable(class_weight, self.logits.dtype))
        try:
            return _core.run(
                operation,
                self.logits,
                self.axis,
                labels=self.indices,
                second=self.probabilities,
                class_weight=class_weight,
                sample_weight=self.sample_weight,
                grad_loss=self.grad_loss,
                **options,
            )
        except IndexError as error:
            assert self.indices is not None
            position = tuple(int(i) for i in np.unravel_index(error.args[0], self.shape))
            n = self.logits.shape[self.axis]
            where = list(position) if position else ""
            raise IndexError(f"labels{where} is {self.indices[position]}, expected a class in [0, {n})") from None


def near_one(weights: Array) -> Array:
    """Weights that are all tiny or all huge times a power of two, so that the largest or the smallest is near 1.

    A mean is the same for all multiples of its weights, and the kernels weight in the logits' dtype, whose
    range may be smaller. Others stay as they are: a huge one may belong to a row that does not count, and must
    not push those out of the range that do.
    """
    with np.errstate(all="ignore"):
        magnitudes = np.abs(weights)
        if np.any((magnitudes >= 2.0**-32) & (magnitudes <= 2.0**32)):
            return weights
        magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
        if magnitudes.size == 0 or magnitudes.min() < 1 < magnitudes.max():
            return weights
        reference = magnitudes.max() if magnitudes.max() < 1 else magnitudes.min()
        scaled: Array = np.ldexp(weights, -np.frexp(reference)[1])
        return scaled


def _prepare(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Hashable,
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    is_mean: bool = False,
) -> _Rows:
    given = as_ndarray(logits, "logits")
    dtype = floating_dtype(given.dtype, "logits")
    at = single_axis(axis, given.ndim, "logits")
    array = readable(given, computed_in(dtype))
    n = array.shape[at]
    rows = _Rows(array, dtype, at, None, None, None, None)
    targets = integer_if_empty(labels, "labels")
    if targets.shape == array.shape:
        rows.probabilities = real_array(targets, "labels", array.dtype)
    elif targets.shape == rows.shape:
        rows.indices = integer_array(targets, "labels (class indices)")
    else:
        raise ValueError(
            f"labels has shape {targets.shape}, expected {rows.shape} (class indices) "
            f"or {array.shape} (class probabilities)"
        )
    if weight is not None:
        class_weight = real_array(weight, "weight", np.dtype(np.float64))
        if class_weight.shape != (n,):
            raise ValueError(f"weight has shape {class_weight.shape}, expected ({n},), one for each class")
        if is_mean and rows.indices is not None:  # of probabilities it divides by sample_weight alone
            class_weight = near_one(class_weight)
        rows.class_weight = class_weight
    if sample_weight is not None:
        row_weight = real_array(sample_weight, "sample_weight", np.dtype(np.float64))
        if row_weight.shape != rows.shape:
            raise ValueError(f"sample_weight has shape {row_weight.shape}, expected {rows.shape}")
        rows.sample_weight = near_one(row_weight) if is_mean else row_weight
    return rows


def cross_entropy(
    function: str,
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Hashable,
    want_loss: bool,
    want_gradient: bool,
    grad_loss: ArrayLike | None,
    out: Array | None,
    /,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    **unknown: Any,
) -> tuple[Any, Any]:
    """Loss and gradient, None for the one that is not wanted; errors name the public function."""
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {next(iter(unknown))!r}")
    rows = _prepare(logits, labels, axis, weight, sample_weight, is_mean=reduction == "mean")
    smoothing, z = checked_scalars(label_smoothing, z_loss, reduction)
    options: dict[str, Any] = {"label_smoothing": smoothing, "z_loss": z}
    if ignore_index is not None:
        index = checked_ignore_index(ignore_index, None if rows.indices is None else rows.indices.dtype)
        # The kernels compare the bits of an int64.
        options["ignore_index"] = index - 2**64 if index is not None and index >= 2**63 else index
    if reduction == "mean":
        options["mean"] = True

    upstream: float | Array | None = None
    if grad_loss is not None:
        upstream = real_array(weak_scalar(grad_loss, "grad_loss"), "grad_loss", np.dtype(np.float64))
        if upstream.ndim == 0:
            options["grad_scale"] = upstream = float(upstream)
        elif reduction == "none" and upstream.shape == rows.shape:
            rows.grad_loss = upstream
        else:
            expected = f"() or {rows.shape}" if reduction == "none" else "() (a scalar)"
            raise ValueError(f"grad_loss has shape {upstream.shape}, expected {expected}")

    if want_gradient:
        check_out(out, rows.logits.shape, rows.dtype)
    compute = functools.partial(_computed, want_loss, want_gradient, reduction == "none", options)
    beyond = rows.beyond_float32(want_gradient, upstream)
    if beyond is None:
        value, gradient = compute(rows, out)
    elif reduction == "mean":  # every row's gradient depends on the others' weights
        value, gradient = compute(rows.in_float64())
    else:
        (value, gradient), (wide_value, wide_gradient) = map(compute, rows.in_two_parts(beyond))
        value = np.where(beyond, wide_value, value) if reduction == "none" else value + wide_value
        gradient = _merged(gradient, wide_gradient, beyond, rows.axis)
    if want_loss and z != 0 and rows.probabilities is not None and rows.logits.shape[rows.axis] == 0:
        value = _z_loss_without_classes(rows, z, reduction)
    if want_gradient:
        gradient = deliver(readable(gradient, rows.logits.dtype), out, rows.dtype)
    return deliver(np.asarray(value), None, rows.dtype) if want_loss else None, gradient


def _computed(
    want_loss: bool,
    want_gradient: bool,
    each_loss: bool,
    options: dict[str, Any],
    rows: _Rows,
    out: Array | None = None,
) -> tuple[Any, Any]:
    """The losses, or their sum or mean, and the gradient, all in the dtype they are computed in."""
    target = target_for(out, rows.logits) if want_gradient else None
    if target is not None:
        rows.keep_apart([target])
    losses = np.zeros(rows.shape, rows.logits.dtype) if want_loss and each_loss else None
    sum_losses = want_loss and not each_loss
    total = rows.run(_core.CROSS_ENTROPY, out=target, row_out=losses, sum_losses=sum_losses, **options)
    return total if losses is None else losses, target


def _merged(narrow: Any, wide: Any, beyond: Array, axis: int) -> Any:
    """Elements of the rows `beyond` from `wide`, rounded, and the others from `narrow`."""
    if narrow is None:
        return None
    return np.where(np.expand_dims(beyond, axis), readable(wide, narrow.dtype), narrow)


def _z_loss_without_classes(rows: _Rows, z: float, reduction: Reduction) -> Any:
    """Losses of rows of no classes, whose logsumexp is -inf: no kernel runs there."""
    weight = np.ones(rows.shape) if rows.sample_weight is None else rows.sample_weight
    with np.errstate(all="ignore"):
        losses = np.where(weight == 0, 0.0, weight * z * np.inf)
        if reduction == "none":
            return losses
        return losses.sum() / weight.sum() if reduction == "mean" else losses.sum()


def checked_scalars(label_smoothing: float, z_loss: float, reduction: Reduction) -> tuple[float, float]:
    """The two numbers among the loss options as floats."""
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}, expected 'none', 'sum' or 'mean'")
    smoothing = real_number(label_smoothing, "label_smoothing")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing is {smoothing}, expected a number from 0 to 1")
    z = real_number(z_loss, "z_loss")
    if not math.isfinite(z):
        raise ValueError(f"z_loss is {z}, expected a finite number")
    return smoothing, z


def checked_ignore_index(ignore_index: int, labels_dtype: np.dtype[Any] | None) -> int | None:
    """The label to be ignored; None where no label of this dtype can be it. No dtype: labels are probabilities."""
    if labels_dtype is None:
        raise ValueError("ignore_index goes with class indices, but labels has the shape of logits")
    try:
        index = operator.index(ignore_index)
    except TypeError:
        raise TypeError(f"ignore_index is {ignore_index!r}, expected an int or None") from None
    if not -(2**63) <= index < 2**64:
        raise ValueError(f"ignore_index is {index}, expected a 64-bit integer")
    limits = np.iinfo(labels_dtype)
    return index if limits.min <= index <= limits.max else None


@adapts_containers("rows")
def softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike, axis: Hashable, **options: Unpack[LossOptions]) -> Any:
    return cross_entropy("softmax_cross_entropy", logits, labels, axis, True, False, None, None, **options)[0]


@adapts_containers("elements")
def softmax_cross_entropy_grad(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Hashable,
    grad_loss: ArrayLike | None,
    out: Array | None,
    **options: Unpack[LossOptions],
) -> Any:
    return cross_entropy("softmax_cross_entropy_grad", logits, labels, axis, False, True, grad_loss, out, **options)[1]


@adapts_containers("rows", "elements")
def softmax_cross_entropy_value_and_grad(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Hashable,
    grad_loss: ArrayLike | None,
    out: Array | None,
    **options: Unpack[LossOptions],
) -> tuple[Any, Any]:
    return cross_entropy(
        "softmax_cross_entropy_value_and_grad", logits, labels, axis, True, True, grad_loss, out, **options
    )


@adapts_containers("elements", "elements")
def softmax_cross_entropy_grad_hess(
    logits: ArrayLike,
    labels: ArrayLike,
    /,
    axis: Hashable = -1,
    *,
    factor: float = 1.0,
    min_hess: float = 0.0,
    grad_out: Array | None = None,
    hess_out: Array | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> tuple[Any, Any]:
    """Gradient and diagonal of the Hessian, as gradient-boosting libraries want them.

    Parameters
    ----------
    logits, labels, axis, weight, sample_weight
        As in `softmax_cross_entropy`; `weight` goes with class indices alone.
    factor : float, default 1.0
        Positive: 2 for XGBoost's rule, ``n / (n - 1)`` for LightGBM's.
    min_hess : float, default 0.0
        The least value of the Hessian, not negative.
    grad_out, hess_out : ndarray, optional
        Two different floating arrays of the shape of `logits` that take the results.

    Returns
    -------
    gradient : ndarray
        ``(p - y) * w`` of each row, p its softmax, y its label as probabilities, w its weight.
    hessian : ndarray
        ``max(factor * p * (1 - p) * w, min_hess)``.

    Raises
    ------
    IndexError, TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax_cross_entropy` does; nothing has been written then.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> gradient, hessian = fsm.softmax_cross_entropy_grad_hess(np.log([[1.0, 3.0]]), [1], factor=2)
    >>> hessian
    array([[0.375, 0.375]])
    """
    rows = _prepare(logits, labels, axis, weight, sample_weight)
    if weight is not None and rows.probabilities is not None:
        raise ValueError("weight goes with class indices, but labels has the shape of logits")
    scale, least = real_number(factor, "factor"), real_number(min_hess, "min_hess")
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"factor is {scale}, expected a positive finite number")
    if not (least >= 0 and math.isfinite(least)):
        raise ValueError(f"min_hess is {least}, expected a finite number that is not negative")
    check_out(grad_out, rows.logits.shape, rows.dtype, "grad_out")
    check_out(hess_out, rows.logits.shape, rows.dtype, "hess_out")
    if grad_out is not None and (grad_out is hess_out or (hess_out is not None and share_memory(grad_out, hess_out))):
        raise ValueError("grad_out and hess_out share memory, expected two different arrays")
    compute = functools.partial(_computed_grad_hess, scale, least)
    beyond = rows.beyond_float32(False, None if scale == 1 else scale)
    if beyond is None:
        results = compute(rows, grad_out, hess_out)
    else:
        parts = zip(*map(compute, rows.in_two_parts(beyond)), strict=True)
        results = tuple(_merged(narrow, wide, beyond, rows.axis) for narrow, wide in parts)
    return deliver(results[0], grad_out, rows.dtype), deliver(results[1], hess_out, rows.dtype)


def _computed_grad_hess(
    factor: float, min_hess: float, rows: _Rows, grad_out: Array | None = None, hess_out: Array | None = None
) -> tuple[Array, ...]:
    """Gradient and Hessian in the dtype they are computed in."""
    gradient, hessian = target_for(grad_out, rows.logits), target_for(hess_out, rows.logits)
    rows.keep_apart([gradient, hessian])
    rows.run(_core.GRAD_HESS, out=gradient, hessian=hessian, factor=factor, min_hess=min_hess)
    return gradient, hessian
