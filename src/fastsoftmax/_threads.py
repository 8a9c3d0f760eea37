"""How many threads: the limits of the environment, and the user's."""

from __future__ import annotations

import math
import operator
import os
import threading
from pathlib import Path
from types import TracebackType

from fastsoftmax import _core

MOST_THREADS = 2**15 - 1


def _environment_threads() -> int:
    """The first number of OMP_NUM_THREADS, 0 where it is unset or no number."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(int(first), MOST_THREADS) if first.isdecimal() else 0


def _quota(folder: Path) -> float:
    """CPUs that a control group may use, by cgroup v2's file or v1's two; infinite without."""
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((folder / name).read_text() for name in files).split()
            return math.inf if quota in ("max", "-1") else int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or nothing that a kernel writes
            continue
    return math.inf


def _quota_threads(mounts: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> int:
    """The CPU quota of this process's control groups, rounded up; 0 where there is none."""
    try:
        lines = os.fsdecode(process.read_bytes()).split("\n")  # a path may hold any other byte
    except OSError:
        return 0
    smallest = math.inf
    for line in lines:
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = mounts
        elif "cpu" in controllers.split(","):
            mount = mounts / "cpu"
        else:
            continue
        # A limit holds for everything below it. Inside a container the path may be the
        # host's, and then the mount itself is the container's own group.
        folder = mount / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group != mount and mount not in group.parents:
                break
            smallest = min(smallest, _quota(group))
    return max(1, math.ceil(smallest)) if smallest < math.inf else 0


def initialise() -> None:
    """Tell the C library its default, once at import."""
    environment, quota = _environment_threads(), _quota_threads()
    limit = min((n for n in (environment, quota) if n), default=0)
    _core.initialise_threads(limit, environment or _core.processor_count())


def _thread_count(n: int) -> int:
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"n is {n!r}, expected an int") from None
    if not 1 <= count <= MOST_THREADS:
        raise ValueError(f"n is {count}, expected a number of threads from 1 to {MOST_THREADS}")
    return count


def set_num_threads(n: int) -> None:
    """Set the number of threads this library uses in this process.

    Parameters
    ----------
    n : int
        At least 1. It takes the place of the default: the smallest of ``OMP_NUM_THREADS``,
        the process's CPU affinity and its container's CPU quota.

    Raises
    ------
    TypeError, ValueError
        `n` is not an int, or below 1.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.set_num_threads(1)
    >>> fsm.get_num_threads()
    1
    """
    _core.request_threads(_thread_count(n))


def get_num_threads() -> int:
    """Return the number of threads that a large call made here and now would use.

    Returns
    -------
    int
        What `set_num_threads` or the default says, within the limits of `num_threads`
        and of threadpoolctl. 1 in the child of a fork and without OpenMP.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.get_num_threads() >= 1
    True
    """
    return _core.thread_limit()


class num_threads(threading.local):  # where threads share a block, each has its own limit to go back to
    """Limit the threads of the calling thread's calls inside a ``with`` block.

    Parameters
    ----------
    n : int
        At least 1. A block inside another cannot raise the outer one's limit.

    Raises
    ------
    TypeError, ValueError
        `n` is not an int, or below 1.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> with fsm.num_threads(1):
    ...     fsm.get_num_threads()
    1
    """

    def __init__(self, n: int) -> None:
        self._limit = _thread_count(n)
        self._before: list[int] = []

    def __enter__(self) -> None:
        before = _core.limit_calling_thread(self._limit)
        if before and before < self._limit:
            _core.limit_calling_thread(before)
        self._before.append(before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _core.limit_calling_thread(self._before.pop())
