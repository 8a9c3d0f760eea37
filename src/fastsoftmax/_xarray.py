"""DataArray and Dataset: axes by name, results with dimensions, coordinates and attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import BoundArguments
from typing import Any

import xarray

from fastsoftmax._adapters import Result, is_argument, map_arguments
from fastsoftmax._arrays import row_axes

# Arguments that broadcast against the first one.
_BROADCAST = ("b", "temperature", "where")


def call(function: Callable[..., Any], results: tuple[Result, ...], bound: BoundArguments) -> Any:
    first, x = next(iter(bound.arguments.items()))
    if isinstance(x, xarray.Dataset):
        return _of_each_variable(function, first, x, bound)
    bound.arguments["axis"] = axis = _positions(bound.arguments["axis"], x)
    axes = row_axes(axis, x.ndim)

    def positional(name: str, value: Any) -> Any:
        """The values of a DataArray, laid out along the dimensions of x."""
        if not isinstance(value, xarray.DataArray):
            return value
        try:
            xarray.align(x, value, join="exact", copy=False)
            if name in _BROADCAST:
                value = value.expand_dims([d for d in x.dims if d not in value.dims])
            return value.transpose(*(d for d in x.dims if d in value.dims)).data
        except ValueError as error:
            raise ValueError(f"{name} does not fit {first}: {error}") from error

    def labelled(value: Any, kind: Result) -> Any:
        if is_argument(value, bound):
            return value
        if kind == "elements":
            return xarray.DataArray(value, x.coords, x.dims, x.name, x.attrs)
        keepdims = bound.arguments.get("keepdims", False)
        if keepdims:
            value = value.squeeze(axes)
        if value.ndim not in (0, x.ndim - len(axes)):  # several picks a row
            return value
        gone = x.dims if value.ndim == 0 else [x.dims[d] for d in axes]
        return x.reduce(lambda data, axis: value, gone, keep_attrs=True, keepdims=keepdims)

    map_arguments(bound, positional)
    value = function(*bound.args, **bound.kwargs)
    if isinstance(value, tuple):
        return tuple(map(labelled, value, results))
    return labelled(value, results[0])


def _positions(axis: Any, x: Any) -> Any:
    """Names of dimensions as positions; numbers and None as they are."""
    if isinstance(axis, tuple):
        return tuple(_positions(a, x) for a in axis)
    return x.get_axis_num(axis) if isinstance(axis, str) else axis


def _of_each_variable(function: Callable[..., Any], first: str, x: Any, bound: BoundArguments) -> Any:
    values = []
    for variable in x.data_vars.values():
        bound.arguments[first] = variable
        values.append(function(*bound.args, **bound.kwargs))
    if values and isinstance(values[0], tuple):
        return tuple(_dataset(part, x) for part in zip(*values, strict=True))
    return _dataset(values, x)


def _dataset(values: Iterable[Any], like: Any) -> Any:
    return xarray.Dataset(dict(zip(like.data_vars, values, strict=True)), attrs=like.attrs)
