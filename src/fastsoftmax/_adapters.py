"""Where the containers of pandas, xarray and Dask leave the general way.

A library is looked up in sys.modules and never imported here: a caller who has not imported it cannot have
one of its containers. Each adapter module has one function `call`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, Literal, ParamSpec

import numpy as np

Arguments = ParamSpec("Arguments")

# What a function returns: an array of the shape of its first argument, or one value a row.
Result = Literal["elements", "rows"]

# Arguments that broadcast against the first one.
BROADCAST = ("b", "temperature", "where")

# Arguments that are written to: ndarrays alone.
OUTS = ("out", "grad_out", "hess_out")

# Library, its containers, and the module that adapts them.
_CONTAINERS = (
    ("pandas", ("DataFrame", "Series"), "fastsoftmax._pandas"),
    ("xarray", ("DataArray", "Dataset"), "fastsoftmax._xarray"),
    ("dask.array", ("Array",), "fastsoftmax._dask"),
)


def adapts_containers(*results: Result) -> Callable[[Callable[Arguments, Any]], Callable[Arguments, Any]]:
    """Let a function with these results take containers of other libraries as its first argument."""

    def decorate(function: Callable[Arguments, Any]) -> Callable[Arguments, Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def adapted(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
            module = _adapter_of(args[0]) if args else None
            if module is None:
                return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return importlib.import_module(module).call(adapted, results, bound)

        return adapted

    return decorate


def _adapter_of(x: Any) -> str | None:
    if type(x) in (np.ndarray, list, tuple, int, float):
        return None
    for library, containers, adapter in _CONTAINERS:
        loaded = sys.modules.get(library)
        # A library that another thread is importing right now may lack a name still.
        if loaded is not None and isinstance(x, tuple(getattr(loaded, name, ()) for name in containers)):
            return adapter
    return None


def map_arguments(bound: inspect.BoundArguments, function: Callable[[str, Any], Any]) -> None:
    """Replace each argument that is read by function(name, argument), the loss options too."""
    for arguments in (bound.arguments, bound.arguments.get("options", {})):
        for name, value in arguments.items():
            if name not in OUTS:
                arguments[name] = function(name, value)


def is_argument(value: Any, bound: inspect.BoundArguments) -> bool:
    """A result that is the caller's own `out` goes back as it is."""
    return any(value is argument for argument in bound.arguments.values())
