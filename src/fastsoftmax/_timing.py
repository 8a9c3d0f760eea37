"""What is timed, and how: contenders take turns, and each one's best time counts."""

from __future__ import annotations

import contextlib
import gc
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsoftmax import _core

Call = Callable[[], Any]

#: The functions that are timed, by the names of the public interface.
LOSS = "softmax_cross_entropy_value_and_grad"
FUNCTIONS = ("softmax", "log_softmax", "logsumexp", LOSS)

#: name: (shape, axis)
SHAPES = {
    "digits": ((1797, 10), -1),
    "imagenet": ((256, 1000), -1),
    "vocabulary": ((8, 128_256), -1),
    "segmentation": ((4, 21, 256, 256), 1),
    "ten": ((10,), -1),
}


@dataclass(frozen=True)
class Work:
    """One function to be computed for one array; `labels` serve the loss."""

    function: str
    logits: np.ndarray
    axis: int
    labels: np.ndarray


def without_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of one number a row."""
    return tuple(length for at, length in enumerate(shape) if at != axis % len(shape))


def make_logits(shape: tuple[int, ...], dtype: Any, deviation: float = 4.0) -> np.ndarray:
    """Normal logits: at deviation 4 they are as peaked as a trained classifier's."""
    values = np.random.default_rng(1).standard_normal(shape, np.float32)
    return (values * deviation).astype(dtype)


def make_work(function: str, shape: tuple[int, ...], axis: int, dtype: Any) -> Work:
    """The work of one cell of a table, the same in every run."""
    labels = np.random.default_rng(2).integers(shape[axis], size=without_axis(shape, axis))
    return Work(function, make_logits(shape, dtype), axis, labels)


@dataclass(frozen=True)
class Times:
    """Seconds for one call: the best sample, and the median to show the spread."""

    best: float
    median: float
    samples: int


def measure(
    contenders: dict[str, Call],
    seconds: float = 0.25,
    rounds: int = 8,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, Times]:
    """Time every contender, turn by turn.

    Parameters
    ----------
    contenders : dict of str to callable
        The calls to be compared.
    seconds : float
        Time for each contender, all its turns together. Turns may last up to four times as
        long to have five samples each: on a busy machine a single one can come to nothing.
    rounds : int
        Turns of each contender. Whatever slows the machine for a while slows them all.
    progress : callable
        Called after each turn.

    Returns
    -------
    dict of str to Times
    """
    loops = {name: _loops(call) for name, call in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in contenders.items():
                _wait_for_quiet()
                samples[name] += _turn(call, loops[name], seconds / rounds)
                progress()
    finally:
        if collecting:
            gc.enable()
    return {name: Times(min(taken), float(np.median(taken)), len(taken)) for name, taken in samples.items()}


def _turn(call: Call, loops: int, seconds: float) -> list[float]:
    samples: list[float] = []
    start = time.perf_counter()
    while True:
        samples.append(_sample(call, loops))
        elapsed = time.perf_counter() - start
        if elapsed >= 4 * seconds or (elapsed >= seconds and len(samples) >= 5):
            return samples


def _sample(call: Call, loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - start) / loops


def _loops(call: Call, sample_seconds: float = 1e-4) -> int:
    """How often a call is repeated in one sample, so that reading the clock does not count."""
    call()
    loops = 1
    while _sample(call, loops) * loops < sample_seconds:
        loops *= 2
    return loops


def _wait_for_quiet(longest: float = 0.2) -> None:
    """Wait until the threads of the contender before have stopped spinning for more work.

    They take processors from whoever comes next: about 10 ms in torch, 50 in ONNX Runtime. Linux
    counts the time of a thread that runs elsewhere at its clock's ticks, up to 10 ms apart.
    """
    give_up = time.perf_counter() + longest
    while time.perf_counter() < give_up:
        wall, work = time.perf_counter(), time.process_time()
        time.sleep(0.02)
        if time.process_time() - work < 0.2 * (time.perf_counter() - wall):
            return


def describe_machine() -> dict[str, str]:
    """What the figures of a run depend on beside the libraries."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return {
        "cpu": name,
        "processors": str(_core.processor_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
