"""Which build this is, what it runs on, which instruction set was chosen."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TypedDict

from fastsoftmax import _core
from fastsoftmax._threads import get_num_threads

_isa = ""


class Config(TypedDict):
    """What `get_config` returns."""

    version: str
    isa: str
    isas: list[str]
    openmp: str | None
    threads: int


def choose_instruction_set() -> None:
    """Choose the best instruction set of this CPU, or the one that FASTSOFTMAX_ISA names."""
    global _isa
    available = [name for name in _core.compiled_instruction_sets() if _core.cpu_has(name)]
    wanted = os.environ.get("FASTSOFTMAX_ISA") or available[0]
    if wanted not in available:
        raise ImportError(f"FASTSOFTMAX_ISA is {wanted!r}, expected one that this CPU has: {', '.join(available)}")
    _core.choose_instruction_set(wanted)
    _isa = wanted


def get_config() -> Config:
    """Return the configuration as a dictionary.

    Returns
    -------
    dict
        ``version``; ``isa``, the instruction set in use; ``isas``, those compiled;
        ``openmp``, the runtime's name or None; ``threads``, as `get_num_threads` says.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> "scalar" in fsm.get_config()["isas"]
    True
    """
    return {
        "version": version("fastsoftmax"),
        "isa": _isa,
        "isas": _core.compiled_instruction_sets(),
        "openmp": _core.openmp_runtime(),
        "threads": get_num_threads(),
    }


def show_config() -> None:
    """Print the configuration, a line for each entry of `get_config`.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.show_config()  # doctest: +ELLIPSIS
    version: ...
    """
    config = get_config()
    print(f"version: {config['version']}")
    print(f"instruction set: {config['isa']} (compiled: {', '.join(config['isas'])})")
    print(f"OpenMP: {config['openmp'] or 'none, this build runs on one thread'}")
    print(f"threads: {config['threads']}")
