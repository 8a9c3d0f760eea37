"""The general way of softmax, log_softmax and logsumexp, and the functions built on them.

Each function does the same four things: check the arguments, lay the arrays out as rows,
run the kernel, hand the result over.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax import _core
from fastsoftmax._adapters import adapts_containers
from fastsoftmax._arrays import (
    Array,
    Axis,
    apart_from,
    as_ndarray,
    as_rows,
    broadcast,
    check_out,
    common_shape,
    computed_in,
    copy_back,
    deliver,
    floating_dtype,
    integer_array,
    mask_of,
    outside,
    readable,
    real_array,
    row_axes,
    single_axis,
    target_for,
    temperatures,
    weak_scalar,
)


@adapts_containers("elements")
def softmax(x: ArrayLike, axis: Axis, temperature: ArrayLike, where: ArrayLike | None, out: Array | None) -> Any:
    return _elementwise(_core.SOFTMAX, x, axis, temperature, where, out, masked_result=0.0)


@adapts_containers("elements")
def log_softmax(x: ArrayLike, axis: Axis, temperature: ArrayLike, where: ArrayLike | None, out: Array | None) -> Any:
    return _elementwise(_core.LOG_SOFTMAX, x, axis, temperature, where, out, masked_result=-np.inf)


def _elementwise(
    operation: int,
    x: ArrayLike,
    axis: Axis,
    temperature: ArrayLike,
    where: ArrayLike | None,
    out: Array | None,
    masked_result: float,
) -> Any:
    given = as_ndarray(x, "x")
    dtype = floating_dtype(given.dtype, "x")
    axes = row_axes(axis, given.ndim)
    row_temperatures = temperatures(temperature, given.shape, axes)
    mask = mask_of(where, given.shape)
    check_out(out, given.shape, dtype)

    def in_dtype_of(array: Array, row_temperatures: Array) -> Any:
        return _elementwise(operation, array, axis, row_temperatures, where, None, masked_result)

    result = _partly_in_float64(in_dtype_of, given, dtype, row_temperatures, axes)
    if result is not None:
        return deliver(result, out, dtype)

    array = readable(given, computed_in(dtype))
    target = target_for(out, array)
    row_temperatures = apart_from(row_temperatures, [target])
    array = apart_from(array, [target], in_place=True)
    if mask is not None:
        # Masked elements are absent from their rows, and so is -inf.
        absent = ~mask
        if np.may_share_memory(array, target):
            target = array = array.copy()
        else:
            np.copyto(target, array)
            array = target
        np.copyto(array, -np.inf, where=absent)
    rows, row_axis = as_rows(array, axes)
    target_rows, _ = as_rows(target, axes)
    _core.run(operation, rows, row_axis, out=target_rows, temperature=row_temperatures)
    copy_back(target_rows, target, axes)
    if mask is not None:
        np.copyto(target, masked_result, where=absent)
    return deliver(target, out, dtype)


#: Of float32.
SMALLEST_NORMAL, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def _partly_in_float64(
    compute: Callable[[Array, Array], Any],
    given: Array,
    dtype: np.dtype[Any],
    row_temperatures: Array | None,
    axes: tuple[int, ...],
) -> Array | None:
    """compute(x, temperatures) where some temperatures are no normal float32; None where all are, as a rule.

    Rows with such a temperature are computed in float64; the others in float32, so that their bits stay the same.
    """
    if row_temperatures is None or computed_in(dtype) == np.float64:
        return None
    beyond = outside(row_temperatures, SMALLEST_NORMAL, LARGEST)
    if beyond is None:
        return None
    beyond, kept = np.expand_dims(beyond, axes), np.expand_dims(row_temperatures, axes)
    wide = compute(given.astype(np.float64), kept)
    narrow = compute(readable(given, np.dtype(np.float32)), np.where(beyond, 1.0, kept))
    return np.where(beyond, readable(wide, narrow.dtype), narrow)


@adapts_containers("rows", "rows")
def logsumexp(
    x: ArrayLike,
    axis: Axis,
    b: ArrayLike | None,
    keepdims: bool,
    return_sign: bool,
    where: ArrayLike | None,
    out: Array | None,
) -> Any:
    given = as_ndarray(x, "x")
    dtype = floating_dtype(given.dtype, "x")
    factors = None
    if b is not None:
        factors = as_ndarray(weak_scalar(b, "b"), "b")
        dtype = _common_dtype(x, given, b, factors)
        try:
            both = common_shape(given.shape, factors.shape)
        except ValueError:
            raise ValueError(f"x and b have shapes {given.shape} and {factors.shape}, which do not broadcast") from None
        given = np.broadcast_to(given, both)
        if factors.ndim == 0:  # a row of them is read faster than one over and over
            factors = np.full(given.shape[-1:], factors)
        factors = np.broadcast_to(readable(factors, computed_in(dtype)), both)
    axes = row_axes(axis, given.ndim)
    mask = mask_of(where, given.shape)
    kept_shape = tuple(1 if d in axes else size for d, size in enumerate(given.shape))
    row_shape = tuple(size for d, size in enumerate(given.shape) if d not in axes)
    shape = kept_shape if keepdims else row_shape
    check_out(out, shape, dtype)

    array = readable(given, computed_in(dtype))
    if factors is not None and mask is not None:
        factors = np.where(mask, factors, array.dtype.type(0))
    elif mask is not None:
        array = np.where(mask, array, array.dtype.type(-np.inf))
    rows, row_axis = as_rows(array, axes)
    target = np.empty(row_shape, array.dtype)
    sign = np.empty(row_shape, array.dtype) if return_sign else None
    if rows.shape[row_axis] == 0:
        target[...] = -np.inf
    elif factors is not None:
        rows, second = _within_range(rows, as_rows(factors, axes)[0], row_axis)
        _core.run(_core.LOGSUMEXP, rows, row_axis, second=second, row_out=target, sign_out=sign)
    else:
        _core.run(_core.LOGSUMEXP, rows, row_axis, row_out=target)
    if sign is not None and (factors is None or rows.shape[row_axis] == 0):
        sign[...] = np.where(np.isnan(target), target, target > -np.inf)  # of a sum of positive terms
    value = deliver(target.reshape(shape), out, dtype)
    return (value, deliver(sign.reshape(shape), None, dtype)) if sign is not None else value


#: ln 2 in two parts (mpmath), the first of 40 bits: times an exponent it is exact.
LN2_HIGH = float.fromhex("0x1.62e42fefa2p-1")
LN2_LOW = float.fromhex("0x1.9ef35793c7673p-41")


def _within_range(x: Array, b: Array, axis: int) -> tuple[Array, Array]:
    """x and b as the kernels take them: of the same sums, with factors that are 0, infinite or within their range.

    In rows whose products with b might overflow or underflow x + k ln 2 and b / 2**k, k an integer; and a
    factor of -inf that is not finite becomes 0.
    """
    limit = np.finfo(b.dtype).maxexp // 4
    beyond = outside(b, 2.0**-limit, 2.0**limit)
    if beyond is None:
        return x, b
    if not np.isfinite(b).all():
        b = np.where(np.isneginf(x) & ~np.isfinite(b), b.dtype.type(0), b)  # -inf is absent, whatever its factor
    beyond = np.any(beyond, axis=axis, keepdims=True)
    if not beyond.any():
        return x, b
    with np.errstate(all="ignore"):
        k = np.where(beyond & np.isfinite(b), np.frexp(b)[1], 0)
        wide, step = x.astype(np.float64), k * LN2_HIGH
        shifted = wide + step
        part = shifted - wide
        lost = (wide - (shifted - part)) + (step - part)  # by the addition, exactly (TwoSum)
        shifted = np.where((k != 0) & np.isfinite(x), shifted + (lost + k * LN2_LOW), wide)
        return shifted.astype(x.dtype), np.ldexp(b, -k)


def _common_dtype(x: Any, x_array: Array, b: Any, b_array: Array) -> np.dtype[Any]:
    """What NumPy would compute x * b in; Python scalars are weak; never an integer."""
    x_dtype, b_dtype = floating_dtype(x_array.dtype, "x"), floating_dtype(b_array.dtype, "b")
    if type(b) in (bool, int, float):
        return x_dtype
    if type(x) in (bool, int, float):
        return b_dtype
    product = np.multiply.resolve_dtypes((x_array.dtype, b_array.dtype, None))[-1]
    return floating_dtype(product, "x and b together")


@adapts_containers("elements")
def softmax_vjp(p: ArrayLike, g: ArrayLike, /, axis: Axis = -1, *, out: Array | None = None) -> Any:
    """Gradient through `softmax`, from its output.

    Parameters
    ----------
    p : array_like
        Probabilities: a result of `softmax`.
    g : array_like
        Gradient with respect to `p`, of the same shape.
    axis : int, tuple of ints or None, default -1
        The axis or axes `p` was computed along.
    out : ndarray, optional
        A floating array of the shape of `p` that takes the result; it may be `p` or `g`.

    Returns
    -------
    ndarray
        ``p * (g - sum(g * p))``, of the shape and floating dtype of `p`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does; ValueError where the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> fsm.softmax_vjp(np.array([0.25, 0.75]), np.array([1.0, 0.0]))
    array([ 0.1875, -0.1875])
    """
    return _vector_jacobian_product(_core.SOFTMAX_VJP, p, "p", g, axis, out)


@adapts_containers("elements")
def log_softmax_vjp(logp: ArrayLike, g: ArrayLike, /, axis: Axis = -1, *, out: Array | None = None) -> Any:
    """Gradient through `log_softmax`, from its output.

    Parameters
    ----------
    logp : array_like
        Log-probabilities: a result of `log_softmax`.
    g : array_like
        Gradient with respect to `logp`, of the same shape.
    axis : int, tuple of ints or None, default -1
        The axis or axes `logp` was computed along.
    out : ndarray, optional
        A floating array of the shape of `logp` that takes the result; it may be `logp` or `g`.

    Returns
    -------
    ndarray
        ``g - exp(logp) * sum(g)``, of the shape and floating dtype of `logp`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does; ValueError where the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> fsm.log_softmax_vjp(np.log([0.25, 0.75]), np.array([1.0, 0.0]))
    array([ 0.75, -0.75])
    """
    return _vector_jacobian_product(_core.LOG_SOFTMAX_VJP, logp, "logp", g, axis, out)


def _vector_jacobian_product(
    operation: int, p: ArrayLike, name: str, g: ArrayLike, axis: Axis, out: Array | None
) -> Any:
    given = as_ndarray(p, name)
    dtype = floating_dtype(given.dtype, name)
    gradient = real_array(g, "g", computed_in(dtype))
    if gradient.shape != given.shape:
        raise ValueError(f"g has shape {gradient.shape}, expected that of {name}: {given.shape}")
    axes = row_axes(axis, given.ndim)
    check_out(out, given.shape, dtype)
    array = readable(given, computed_in(dtype))
    target = target_for(out, array)
    array = apart_from(array, [target], in_place=True)
    gradient = apart_from(gradient, [target], in_place=True)
    rows, row_axis = as_rows(array, axes)
    target_rows, _ = as_rows(target, axes)
    _core.run(operation, rows, row_axis, second=as_rows(gradient, axes)[0], out=target_rows)
    copy_back(target_rows, target, axes)
    return deliver(target, out, dtype)


def softmax_jacobian(p: ArrayLike, /, axis: int = -1) -> Any:
    """Jacobian of `softmax` for each row, from its output.

    Parameters
    ----------
    p : array_like
        Probabilities: a result of `softmax`, of at least one dimension.
    axis : int, default -1
        The axis `p` was computed along.

    Returns
    -------
    ndarray
        ``diag(p) - outer(p, p)`` for each row: `axis` is removed and two axes of its
        length come last. The floating dtype of `p`.

    Raises
    ------
    TypeError
        `axis` is not one int, or `p` is of a kind that has no softmax.
    ValueError
        `p` is a scalar.
    numpy.exceptions.AxisError
        `axis` is not an axis of `p`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> fsm.softmax_jacobian(np.array([0.25, 0.75]))
    array([[ 0.1875, -0.1875],
           [-0.1875,  0.1875]])
    """
    given = as_ndarray(p, "p")
    dtype = floating_dtype(given.dtype, "p")
    rows = np.moveaxis(readable(given, computed_in(dtype)), single_axis(axis, given.ndim, "p"), -1)
    with np.errstate(all="ignore"):
        jacobian = -(rows[..., :, None] * rows[..., None, :])
        diagonal = np.einsum("...ii->...i", jacobian)
        diagonal += rows
    return deliver(jacobian, None, dtype)


@adapts_containers("rows")
def selected_log_softmax(
    logits: ArrayLike,
    index: ArrayLike,
    /,
    axis: Hashable = -1,
    *,
    temperature: ArrayLike = 1.0,
    out: Array | None = None,
) -> Any:
    """Log-probabilities of chosen elements of each row, without those of all the others.

    Parameters
    ----------
    logits : array_like
        Real logits of at least one dimension.
    index : array_like of int
        Positions along `axis`: of the dimensions of `logits`, any number of picks a row, or
        without `axis`, one pick a row.
    axis : int, default -1
        The axis a row lies along.
    temperature : float or array_like, default 1.0
        As in `log_softmax`.
    out : ndarray, optional
        A floating array of the result's shape that takes the result.

    Returns
    -------
    ndarray or scalar
        ``numpy.take_along_axis(log_softmax(logits), index, axis)``, bit for bit, of the
        shape of `index` and the floating dtype of `logits`.

    Raises
    ------
    IndexError
        An index is outside ``[0, n)``; nothing has been written then.
    TypeError, ValueError, numpy.exceptions.AxisError
        As `log_softmax` does; TypeError for an index that is not of integers.

    Notes
    -----
    With one pick a row a DataFrame or DataArray gives the remaining labels; several picks
    come as a plain array. A Dask array is computed first.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> logits = np.log([[1.0, 2.0, 5.0], [2.0, 2.0, 4.0]])
    >>> np.exp(fsm.selected_log_softmax(logits, [2, 0]))
    array([0.625, 0.25 ])
    """
    given = as_ndarray(logits, "logits")
    dtype = floating_dtype(given.dtype, "logits")
    at = single_axis(axis, given.ndim, "logits")
    picks = integer_array(index, "index")
    index_shape = picks.shape
    one_a_row = picks.ndim == given.ndim - 1
    if one_a_row:
        picks = np.expand_dims(picks, at)
    if picks.ndim != given.ndim:
        raise ValueError(f"index has shape {index_shape}, expected {given.ndim} or {given.ndim - 1} dimensions")
    n = given.shape[at]
    row_temperatures = temperatures(temperature, given.shape, (at,))
    batch = [1 if d == at else size for d, size in enumerate(given.shape)]
    chosen = [1 if d == at else size for d, size in enumerate(picks.shape)]
    try:
        rows_shape = list(common_shape(tuple(batch), tuple(chosen)))
    except ValueError:
        raise ValueError(f"index has shape {index_shape}, expected one that fits logits' {given.shape}") from None

    def with_length(length: int) -> tuple[int, ...]:
        return (*rows_shape[:at], length, *rows_shape[at + 1 :])

    result_shape = with_length(picks.shape[at])
    shape = result_shape[:at] + result_shape[at + 1 :] if one_a_row else result_shape
    check_out(out, shape, dtype)

    def in_dtype_of(array: Array, row_temperatures: Array) -> Any:
        return np.reshape(selected_log_softmax(array, index, at, temperature=row_temperatures), result_shape)

    result = _partly_in_float64(in_dtype_of, given, dtype, row_temperatures, (at,))
    if result is not None:
        return deliver(result.reshape(shape), out, dtype)

    array = np.broadcast_to(readable(given, computed_in(dtype)), with_length(n))
    picks = np.broadcast_to(picks, result_shape)
    if row_temperatures is not None:
        kept = np.expand_dims(row_temperatures, at)
        row_temperatures = broadcast(kept, with_length(1), "temperature").squeeze(at)
    target = np.empty(result_shape, array.dtype)

    def wrong(position: tuple[int, ...]) -> IndexError:
        in_index = position[:at] + position[at + 1 :] if one_a_row else position
        where = list(in_index) if in_index else ""
        return IndexError(f"index{where} is {picks[position]}, expected one in [0, {n})")

    if picks.size and n == 0:
        raise wrong((0,) * picks.ndim)
    try:
        if picks.size:
            _core.run(_core.SELECT, array, at, labels=picks, out=target, temperature=row_temperatures)
    except IndexError as error:
        raise wrong(_position(error.args[0], picks, at, error.args[1])) from None
    return deliver(target.reshape(shape), out, dtype)


def _position(row: int, array: Array, axis: int, item: int) -> tuple[int, ...]:
    """Where item `item` of row number `row` stands in an array with the rows' axis."""
    batch = np.unravel_index(row, array.shape[:axis] + array.shape[axis + 1 :])
    return (*(int(i) for i in batch[:axis]), item, *(int(i) for i in batch[axis:]))
