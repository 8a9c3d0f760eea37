"""Arguments to arrays that a kernel can read and write, and results back to the caller."""

from __future__ import annotations

import math
import operator
from collections.abc import Hashable, Sequence
from typing import Any, overload

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import ArrayLike, NDArray

from fastsoftmax import _core

Array = NDArray[Any]
Axis = Hashable | tuple[Hashable, ...] | None  # ints, or names of an xarray object's dimensions

# Computed in the dtype on the right, returned in the one on the left.
_COMPUTED_IN: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float32),
    "bfloat16": np.dtype(np.float32),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}

# DLPack's device types whose memory the CPU reads: kDLCPU, kDLCUDAHost, kDLROCMHost.
_HOST_DEVICES = (1, 3, 11)


def as_ndarray(value: Any, name: str) -> Array:
    """`value` as a base-class ndarray, without a copy where it has one to show."""
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, whose mask would be lost: pass the data and where=~mask")
        return np.asarray(value)
    if hasattr(value, "__dlpack_device__"):
        return _from_other_library(value, name)
    try:
        return np.asarray(value)
    except (RuntimeError, TypeError) as error:
        raise TypeError(f"{name} cannot be read as a NumPy array: {error}") from error
    except ValueError as error:
        if "inhomogeneous" in str(error):
            raise ValueError(f"{name} is ragged, expected parts of one shape: pad the shorter ones") from error
        raise ValueError(f"{name} cannot be read as a NumPy array: {error}") from error


def _from_other_library(value: Any, name: str) -> Array:
    """The values of a tensor of torch, an array of JAX or CuPy, or another library's that speaks DLPack."""
    library = type(value).__module__.partition(".")[0]
    kind = f"{library}.{type(value).__qualname__}"
    if getattr(value, "requires_grad", False):
        raise TypeError(f"{name} is a {kind} that requires grad, expected values alone: pass .detach().cpu() of it")
    try:
        # JAX and others copy from another device without a word: ask first.
        device_type, number = value.__dlpack_device__()
        if device_type in _HOST_DEVICES:
            return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name} is a {kind} that cannot be read as a NumPy array: {error}") from error
    where = getattr(value, "device", f"DLPack device {int(device_type)}:{number}")
    remedy = "pass .detach().cpu() of it" if library == "torch" else "copy it to the CPU first"
    raise TypeError(f"{name} is a {kind} on {where}, expected one in the CPU's memory: {remedy}")


def floating_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """The dtype of a result computed from an argument of this dtype, in native byte order."""
    if dtype.kind in "biu":
        return np.dtype(np.float64)
    if dtype.name in _COMPUTED_IN:
        return dtype.newbyteorder("=")
    raise TypeError(
        f"{name} has dtype {dtype}, expected a real one of at most 64 bits "
        "(float16, bfloat16, float32, float64, an integer or bool)"
    )


def computed_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype whose kernels compute results of this (floating) dtype."""
    return _COMPUTED_IN[dtype.name]


def readable(array: Array, dtype: np.dtype[Any]) -> Array:
    """`array` itself where it has this dtype, aligned; else a copy that has."""
    with np.errstate(all="ignore"):
        array = array.astype(dtype, copy=False)
    return array if array.flags.aligned else array.copy()


def real_array(value: ArrayLike, name: str, dtype: np.dtype[Any]) -> Array:
    """A real argument of any floating, integer or bool dtype, converted to `dtype`."""
    array = as_ndarray(value, name)
    floating_dtype(array.dtype, name)
    return readable(array, dtype)


def integer_if_empty(value: ArrayLike, name: str) -> Array:
    """As `as_ndarray`, but an empty list, which has no dtype of its own, is one of integers."""
    array = as_ndarray(value, name)
    if array.size == 0 and array.dtype == np.float64 and not isinstance(value, np.ndarray):
        array = array.astype(np.int64)
    return array


def integer_array(value: ArrayLike, name: str) -> Array:
    """An array of integers that the kernels can read, of any width."""
    array = integer_if_empty(value, name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}, expected an integer one")
    return readable(array, array.dtype.newbyteorder("="))


def weak_scalar(value: Any, name: str) -> Any:
    """An int beyond 64 bits as the float it is near, as NumPy's ufuncs take it beside floats; else `value`."""
    if type(value) is not int or -(2**63) <= value < 2**64:
        return value
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is an int of {value.bit_length()} bits, too large for a float") from None


def real_number(value: Any, name: str) -> float:
    """A real scalar as a float."""
    array = as_ndarray(weak_scalar(value, name), name)
    if array.ndim or array.dtype.kind not in "biuf":
        raise TypeError(f"{name} is {value!r}, expected a real number")
    return float(array)


def _normalized(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The axes counted from the front; an AxisError for one of any size that there is not."""
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise np.exceptions.AxisError(axis, ndim)  # NumPy's own check stops at 32 bits
    return normalize_axis_tuple(axes, ndim)


def row_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """The axes a row lies along, counted from the front, in ascending order."""
    if axis is None:
        return tuple(range(ndim))
    try:
        given = tuple(map(operator.index, axis if isinstance(axis, tuple) else (axis,)))
    except TypeError:
        raise TypeError(f"axis is {axis!r}, expected an int, a tuple of ints or None") from None
    # A 0-d array is one row of one element; it has the axes of a 1-d array, then.
    axes = _normalized(given, max(ndim, 1))
    return tuple(sorted(axes)) if ndim else ()


def single_axis(axis: Any, ndim: int, name: str) -> int:
    """The one axis of a function that takes no other kind."""
    try:
        index = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis is {axis!r}, expected one int") from None
    if ndim == 0:
        raise ValueError(f"{name} is a scalar, expected an array of at least one dimension")
    return _normalized((index,), ndim)[0]


def as_rows(array: Array, axes: tuple[int, ...]) -> tuple[Array, int]:
    """`array` with the axes of its rows merged into one, and that axis; a view where possible."""
    if len(axes) == 1:
        return array, axes[0]
    batch = [d for d in range(array.ndim) if d not in axes]
    length = math.prod(array.shape[d] for d in axes)
    rows = array.transpose(*batch, *axes).reshape(*[array.shape[d] for d in batch], length)
    return rows, rows.ndim - 1


def copy_back(rows: Array, array: Array, axes: tuple[int, ...]) -> None:
    """Where `rows` is a copy that as_rows had to make of `array`: write it back."""
    if np.may_share_memory(rows, array):
        return
    batch = [d for d in range(array.ndim) if d not in axes]
    order = [*batch, *axes]
    np.copyto(array, rows.reshape([array.shape[d] for d in order]).transpose(np.argsort(order)))


def mask_of(where: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """A boolean mask broadcast to `shape`."""
    if where is None:
        return None
    mask = as_ndarray(where, "where")
    if mask.dtype != np.bool_:
        raise TypeError(f"where has dtype {mask.dtype}, expected bool")
    return broadcast(mask, shape, "where")


def common_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """numpy.broadcast_shapes for any number of dimensions an array can have: that stops at 32."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    shorter = (1,) * (len(longer) - len(shorter)) + shorter
    if any(m != n and 1 not in (m, n) for m, n in zip(longer, shorter, strict=True)):
        raise ValueError(f"shapes {a} and {b} do not broadcast")
    return tuple(m if n == 1 else n for m, n in zip(longer, shorter, strict=True))


def broadcast(array: Array, shape: tuple[int, ...], name: str) -> Array:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {array.shape}, expected one that broadcasts to {shape}") from None


def _extremes(values: Array) -> tuple[float, float]:
    """The smallest and the largest value, NaN where there is one; a single one without the cost of a reduction."""
    if values.size == 1:
        return values.item(), values.item()
    return values.min(), values.max()


def outside(values: Array, low: float, high: float) -> Array | None:
    """Where finite values other than 0 have a magnitude below `low` or above `high`; None if none has, as a rule.

    Of length 1 along the axes `values` repeats along: what broadcasts costs no more than it is.
    """
    if 0 in values.strides:
        values = values[tuple(slice(1) if stride == 0 else slice(None) for stride in values.strides)]
    with np.errstate(all="ignore"):
        if values.size == 0:
            return None
        smallest, largest = _extremes(values)
        if not (smallest >= low and largest <= high):  # some may be negative
            values = np.abs(values)
            smallest, largest = _extremes(values)
        if smallest >= low and largest <= high:
            return None
        return np.isfinite(values) & ((values > high) | ((values < low) & (values > 0)))


def temperatures(temperature: ArrayLike, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array | None:
    """One temperature a row, as float64, or None where all are 1."""
    given = real_array(weak_scalar(temperature, "temperature"), "temperature", np.dtype(np.float64))
    if given.size:
        smallest, largest = _extremes(given)
        if not (smallest > 0 and largest < math.inf):
            wrong = ~(np.isfinite(given) & (given > 0))
            raise ValueError(f"temperature is {given[wrong].flat[0]}, expected a positive finite number")
    kept = tuple(1 if d in axes else size for d, size in enumerate(shape))
    rows = broadcast(given, kept, "temperature").squeeze(axis=axes)
    return None if given.ndim == 0 and given == 1 else rows


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "out") -> None:
    """Raise where a result of this shape and dtype cannot go to `out`."""
    if out is None:
        return
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} is a {type(out).__name__}, expected a numpy.ndarray")
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, expected a plain numpy.ndarray")
    if out.dtype.kind != "f" and out.dtype.name not in _COMPUTED_IN:
        raise TypeError(f"{name} has dtype {out.dtype}, expected a real floating one")
    if not np.can_cast(dtype, out.dtype, casting="same_kind"):
        raise TypeError(f"{name} has dtype {out.dtype}, which cannot take a result of dtype {dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} has shape {out.shape}, expected {shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name} is read-only, expected a writeable array")


def is_same_memory(a: Array, b: Array) -> bool:
    """Every element of one lies where it lies in the other."""
    here, there = a.__array_interface__, b.__array_interface__
    return here["data"][0] == there["data"][0] and a.shape == b.shape and a.strides == b.strides and a.dtype == b.dtype


@overload
def apart_from(array: Array, outs: Sequence[Array], in_place: bool = False) -> Array: ...
@overload
def apart_from(array: None, outs: Sequence[Array], in_place: bool = False) -> None: ...
@overload
def apart_from(array: Array | None, outs: Sequence[Array], in_place: bool = False) -> Array | None: ...
def apart_from(array: Array | None, outs: Sequence[Array], in_place: bool = False) -> Array | None:
    """`array`, or a copy where writing `outs` might change it before it has been read."""
    if array is None:
        return None
    for out in outs:
        if np.may_share_memory(array, out) and not (in_place and is_same_memory(array, out)):
            return array.copy()
    return array


def share_memory(a: Array, b: Array) -> bool:
    """Some byte belongs to both; True as well where that is too hard to tell."""
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # the stub knows 0 and -1 alone
    except np.exceptions.TooHardError:
        return True


def target_for(out: Array | None, like: Array) -> Array:
    """Where a kernel writes: `out` where it can take the result as it comes, else fresh memory.

    An element of a result waits in its place between the phases, where no other may lie then.
    """
    if out is not None and out.dtype == like.dtype and out.flags.behaved and not _core.overlaps_itself(out):
        return np.asarray(out)  # a subclass may have rules of its own for shapes
    return np.empty_like(like, subok=False)


def deliver(result: Array, out: Array | None, dtype: np.dtype[Any]) -> Any:
    """The result in its own dtype: in `out`, or as an array, or a scalar of no dimension."""
    with np.errstate(all="ignore"):
        if out is None:
            return result.astype(dtype, copy=False)[()]
        if result is not out:
            np.copyto(out, result, casting="same_kind")
    return out
