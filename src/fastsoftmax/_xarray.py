"""DataArray and Dataset: axes by name, results with dimensions, coordinates and attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import BoundArguments
from typing import Any

import xarray

from fastsoftmax._adapters import BROADCAST, OUTS, Result, is_argument, map_arguments
from fastsoftmax._arrays import row_axes


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
            if name in BROADCAST:
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
        gone = range(x.ndim) if value.ndim == 0 else axes
        if value.shape != tuple(1 if d in gone else n for d, n in enumerate(x.shape) if keepdims or d not in gone):
            return value  # several picks a row, or b has stretched x
        if keepdims:
            value = value.squeeze(axes)
        return x.reduce(lambda data, axis: value, [x.dims[d] for d in gone], keep_attrs=True, keepdims=keepdims)

    map_arguments(bound, positional)
    value = function(*bound.args, **bound.kwargs)
    if isinstance(value, tuple):
        return tuple(map(labelled, value, results))
    return labelled(value, results[0])


def _positions(axis: Any, x: Any) -> Any:
    """Names of dimensions as positions from the back, as b may put more in front; numbers and None as they are."""
    if isinstance(axis, tuple):
        return tuple(_positions(a, x) for a in axis)
    return x.get_axis_num(axis) - x.ndim if isinstance(axis, str) else axis


def _of_each_variable(function: Callable[..., Any], first: str, x: Any, bound: BoundArguments) -> Any:
    for name in OUTS:
        out = bound.arguments.get(name)
        if out is not None:
            raise TypeError(f"{name} is a {type(out).__name__}, expected None: a Dataset's results are in a new one")
    values = []
    for variable in x.data_vars.values():
        bound.arguments[first] = variable
        values.append(function(*bound.args, **bound.kwargs))
    if values and isinstance(values[0], tuple):
        return tuple(_dataset(part, x) for part in zip(*values, strict=True))
    return _dataset(values, x)


def _dataset(values: Iterable[Any], like: Any) -> Any:
    variables = dict(zip(like.data_vars, values, strict=True))
    for name, value in variables.items():
        if not isinstance(value, xarray.DataArray):
            raise ValueError(
                f"the result for {name!r} has shape {value.shape}, which its dimensions do not describe: "
                "call the function with each DataArray of the Dataset"
            )
    return xarray.Dataset(variables, attrs=like.attrs)
