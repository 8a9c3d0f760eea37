"""DataFrame and Series: results with their labels."""

from __future__ import annotations

from collections.abc import Callable
from inspect import BoundArguments
from typing import Any

import numpy as np
import pandas

from fastsoftmax._adapters import BROADCAST, Result, is_argument, map_arguments
from fastsoftmax._arrays import floating_dtype, row_axes


def call(function: Callable[..., Any], results: tuple[Result, ...], bound: BoundArguments) -> Any:
    first, x = next(iter(bound.arguments.items()))
    axes = row_axes(bound.arguments["axis"], x.ndim)
    remaining = [own for d, own in enumerate(x.axes) if d not in axes]

    def unlabelled(name: str, value: Any) -> Any:
        if not isinstance(value, (pandas.DataFrame, pandas.Series)):
            return value
        # Arrays go by position: labels of another axis or in another order would meet the wrong rows.
        if value.ndim == x.ndim:
            met = x.axes
        elif name in BROADCAST:
            met = x.axes[-1:]
        else:
            met = [x.axes[d] for d in axes] if name == "weight" else remaining
        if len(met) != value.ndim or not all(map(pandas.Index.equals, value.axes, met)):
            raise ValueError(f"{name} has other labels than {first}: reindex it, or pass {name}.to_numpy()")
        return _values(name, value)

    def labelled(value: Any, kind: Result) -> Any:
        labels = x.axes if kind == "elements" else remaining
        if not labels or np.shape(value) != tuple(map(len, labels)) or is_argument(value, bound):
            return value
        if len(labels) == 2:
            return pandas.DataFrame(value, *labels, copy=False)
        return pandas.Series(value, *labels, name=x.name if x.ndim == 1 else None, copy=False)

    map_arguments(bound, unlabelled)
    value = function(*bound.args, **bound.kwargs)
    if isinstance(value, tuple):
        return tuple(map(labelled, value, results))
    return labelled(value, results[0])


def _values(name: str, value: Any) -> Any:
    """The values; NaN for the NA of nullable numbers, which would make the array one of objects."""
    array = np.asarray(value)
    if array.dtype != object:
        return array
    given = value.dtypes if value.ndim == 2 else [value.dtype]
    dtypes = [getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype)) for dtype in given]
    if not all(map(pandas.api.types.is_numeric_dtype, dtypes)):
        return array
    dtype = np.result_type(*dtypes)
    if value.isna().to_numpy().any():
        dtype = floating_dtype(dtype, name)
    return value.to_numpy(dtype, na_value=np.nan)
