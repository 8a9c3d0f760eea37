"""Named pieces of work: shapes that people use, and those that the goals in docs/performance.md speak of."""

from dataclasses import dataclass

import numpy as np

from fastsoftmax._timing import LOSS, SHAPES, Work, make_work

#: Elements of a work that stays in the caches (2 MB of float32), and of one that does not (64 MB).
IN_CACHE, OUT_OF_CACHE = 2**19, 2**24

LENGTHS = (200, 1000, 10_000, 32_000, 200_000)
COLUMNS = (((1, 2048, 1024), 1), ((4, 21, 256, 256), 1), ((1500, 1000), 0), ((512, 49, 8), 1))


@dataclass(frozen=True)
class Case:
    """One function on one shape; `make` gives its arrays."""

    function: str
    shape: tuple[int, ...]
    axis: int = -1
    dtype: str = "float32"

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        place = "" if self.axis in (-1, len(self.shape) - 1) else f" axis {self.axis}"
        return f"{self.function} {self.dtype} {size}{place}"

    def make(self) -> Work:
        """The same logits and labels in every run."""
        return make_work(self.function, self.shape, self.axis, self.dtype)


def row_cases(functions, lengths, dtype="float32", elements=IN_CACHE) -> list[Case]:
    """Rows of each length, as many as make up `elements` (one at least)."""
    return [Case(f, (max(1, elements // n), n), dtype=dtype) for f in functions for n in lengths]


def column_cases(functions, dtype="float32") -> list[Case]:
    return [Case(f, shape, axis, dtype) for f in functions for shape, axis in COLUMNS]


#: What pytest-benchmark runs, beside plain NumPy.
NAMED = {
    f"{function}-{name}-{dtype}": Case(function, shape, axis, dtype)
    for function in ("softmax", "log_softmax", "logsumexp", LOSS)
    for name, (shape, axis) in SHAPES.items()
    for dtype in ("float32", "float64")
}


def very_negative(shape: tuple[int, ...], dtype: str) -> dict[str, np.ndarray]:
    """Ordinary logits under "ordinary", and beside them those that trouble an exp."""
    ordinary = Case("softmax", shape, dtype=dtype).make().logits
    mostly = np.arange(shape[-1]) % 8 != 0
    lowest = np.log(np.finfo(dtype).tiny)
    return {
        "ordinary": ordinary,
        "-1e4": np.where(mostly, ordinary - 1e4, ordinary).astype(dtype),
        "-100": np.where(mostly, ordinary - 100, ordinary).astype(dtype),
        "-inf": np.where(mostly, -np.inf, ordinary).astype(dtype),
        "subnormal results": np.where(mostly, ordinary + lowest, ordinary).astype(dtype),
    }
