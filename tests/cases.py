"""Every public function, called in every way its options allow, on the same rows of data.

`Rows` are `count` rows of length `n`, with all that goes along with them; `CASES` maps a name to a function
of a library (fastsoftmax or its reference) and `Rows`, which returns one array or a tuple of them.
"""

import functools
from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass
class Rows:
    x: np.ndarray  # (count, n)
    b: np.ndarray  # (count, n)
    g: np.ndarray  # (count, n)
    probabilities: np.ndarray  # (count, n)
    mask: np.ndarray  # (count, n)
    labels: np.ndarray  # (count,)
    index: np.ndarray  # (count, 3)
    sample_weight: np.ndarray  # (count,)
    grad_loss: np.ndarray  # (count,)
    temperature: np.ndarray  # (count, 1)
    weight: np.ndarray  # (n,)

    def map(self, function):
        """All arrays with one entry a row, each through `function`."""
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self) if f.name != "weight"})


@functools.lru_cache(maxsize=512)
def make_rows(count, n, dtype, special=False):
    """Rows of ordinary logits; with `special`, some that hold a NaN, an infinity, tiny or huge numbers."""
    rng = np.random.default_rng([count, n])
    x = rng.normal(0, 4, (count, n)).astype(dtype)
    probabilities = rng.uniform(0, 1, (count, n))
    probabilities[:, 0] += 0.5
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    if special:
        for row, value in enumerate([np.nan, np.inf, -np.inf, 1e-39, -3e38]):
            x[(3 * row + 1) % count, rng.integers(n)] = value
        x[-1] = -np.inf
    return Rows(
        x=x,
        b=rng.normal(0, 2, (count, n)).round(1).astype(dtype),
        g=rng.normal(0, 1, (count, n)).astype(dtype),
        probabilities=probabilities.astype(dtype),
        mask=rng.random((count, n)) < 0.7,
        labels=rng.integers(0, n, count),
        index=rng.integers(0, n, (count, 3)),
        sample_weight=rng.integers(0, 5, count) / 2,
        grad_loss=rng.normal(size=count),
        temperature=rng.uniform(0.25, 3, (count, 1)),
        weight=rng.uniform(0.25, 2, n).astype(dtype),
    )


def _loss_cases(reduction):
    value_and_grad = "softmax_cross_entropy_value_and_grad"
    options = {
        "": lambda r: {},
        "class weights": lambda r: {"weight": r.weight},
        "weights, ignored": lambda r: {"sample_weight": r.sample_weight, "ignore_index": 1},
        "smoothing": lambda r: {"label_smoothing": 0.1},
        "smoothing, z-loss": lambda r: {"label_smoothing": 0.1, "z_loss": 0.01, "weight": r.weight},
        "grad_loss": lambda r: {"grad_loss": r.grad_loss if reduction == "none" else -1.5},
    }
    cases = {}
    for name, chosen in options.items():

        def indices(library, r, chosen=chosen):
            return getattr(library, value_and_grad)(r.x, r.labels, reduction=reduction, **chosen(r))

        def probabilities(library, r, chosen=chosen):
            extra = {key: value for key, value in chosen(r).items() if key != "ignore_index"}
            return getattr(library, value_and_grad)(r.x, r.probabilities, reduction=reduction, **extra)

        cases[f"loss {reduction}, indices, {name}"] = indices
        cases[f"loss {reduction}, probabilities, {name}"] = probabilities
    cases[f"loss {reduction} alone"] = lambda f, r: f.softmax_cross_entropy(r.x, r.labels, reduction=reduction)
    cases[f"gradient {reduction} alone"] = lambda f, r: f.softmax_cross_entropy_grad(r.x, r.labels, reduction=reduction)
    return cases


# Each row of the result depends on the same row of the arguments alone.
ROW_CASES = {
    "softmax": lambda f, r: f.softmax(r.x),
    "softmax, temperature": lambda f, r: f.softmax(r.x, temperature=0.7),
    "softmax, temperatures": lambda f, r: f.softmax(r.x, temperature=r.temperature),
    "softmax, where": lambda f, r: f.softmax(r.x, where=r.mask),
    "log_softmax": lambda f, r: f.log_softmax(r.x),
    "log_softmax, temperatures": lambda f, r: f.log_softmax(r.x, temperature=r.temperature),
    "log_softmax, where": lambda f, r: f.log_softmax(r.x, where=r.mask),
    "logsumexp": lambda f, r: f.logsumexp(r.x),
    "logsumexp, keepdims": lambda f, r: f.logsumexp(r.x, keepdims=True, return_sign=True),
    "logsumexp, where": lambda f, r: f.logsumexp(r.x, where=r.mask),
    "logsumexp, b": lambda f, r: f.logsumexp(r.x, b=r.b, return_sign=True),
    "logsumexp, positive b": lambda f, r: f.logsumexp(r.x, b=abs(r.b), where=r.mask),
    "softmax_vjp": lambda f, r: f.softmax_vjp(r.probabilities, r.g),
    "log_softmax_vjp": lambda f, r: f.log_softmax_vjp(np.minimum(r.x, 0), r.g),
    "grad_hess": lambda f, r: f.softmax_cross_entropy_grad_hess(r.x, r.labels, weight=r.weight, min_hess=1e-3),
    "grad_hess, probabilities": lambda f, r: f.softmax_cross_entropy_grad_hess(
        r.x, r.probabilities, factor=2.0, sample_weight=r.sample_weight
    ),
    "selected": lambda f, r: f.selected_log_softmax(r.x, r.index),
    "selected, one, temperatures": lambda f, r: f.selected_log_softmax(r.x, r.labels, temperature=r.temperature),
    **_loss_cases("none"),
}

# Sums over rows.
SUM_CASES = {**_loss_cases("sum"), **_loss_cases("mean")}

CASES = {**ROW_CASES, **SUM_CASES}


def results(case, library, rows):
    """The case's results as a tuple of arrays."""
    got = CASES[case](library, rows)
    return tuple(np.asarray(a) for a in (got if isinstance(got, tuple) else (got,)))
