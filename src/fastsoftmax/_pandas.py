"""DataFrame and Series: results with their labels."""

from __future__ import annotations

from collections.abc import Callable
from inspect import BoundArguments
from typing import Any

import numpy as np
import pandas

from fastsoftmax._adapters import Result, is_argument, map_arguments
from fastsoftmax._arrays import row_axes


def call(function: Callable[..., Any], results: tuple[Result, ...], bound: BoundArguments) -> Any:
    first, x = next(iter(bound.arguments.items()))
    axes = row_axes(bound.arguments["axis"], x.ndim)

    def unlabelled(name: str, value: Any) -> Any:
        if not isinstance(value, (pandas.DataFrame, pandas.Series)):
            return value
        # Arrays go by position: labels in another order would meet the wrong rows.
        if not all(any(labels.equals(own) for own in x.axes) for labels in value.axes):
            raise ValueError(f"{name} has other labels than {first}: reindex it, or pass {name}.to_numpy()")
        return np.asarray(value)

    def labelled(value: Any, kind: Result) -> Any:
        labels = [own for d, own in enumerate(x.axes) if kind == "elements" or d not in axes]
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
