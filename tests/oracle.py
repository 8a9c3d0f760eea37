"""Exact results to measure against: wide arithmetic, the textbook's formulas, nothing of fastsoftmax.

`long double` (a mantissa of 64 bits or more) holds every result with at least eleven bits beyond
float64's 53, so its own error is a few thousandths of a float64 ULP; `multiprecision_row` (mpmath) has
the last word and tests the oracle itself. Rows lie along the last axis everywhere.
"""

from typing import NamedTuple

import mpmath
import numpy as np

Wide = np.longdouble
WIDE_ENOUGH = np.finfo(Wide).eps < 2e-19

mpmath.mp.prec = 200


class RowResults(NamedTuple):
    softmax: np.ndarray
    log_softmax: np.ndarray
    logsumexp: np.ndarray


def rows(x):
    """The three functions of finite rows (-inf among them counts as absent)."""
    x = np.asarray(x).astype(Wide)
    with np.errstate(all="ignore"):
        row_max = x.max(axis=-1, keepdims=True)
        distance = x - row_max
        exponentials = np.exp(distance)
        # One maximum is kept out of the sum: log1p keeps what is far below 1.
        top = np.argmax(x, axis=-1)[..., np.newaxis]
        np.put_along_axis(exponentials, top, 0, axis=-1)
        rest = exponentials.sum(axis=-1, keepdims=True)
        np.put_along_axis(exponentials, top, 1, axis=-1)
        log_sum = np.log1p(rest)
        return RowResults(exponentials / (1 + rest), distance - log_sum, (row_max + log_sum)[..., 0])


@np.errstate(all="ignore")
@mpmath.workprec(1200)
def multiprecision_row(x):
    """The same of one row, with bits enough for a sum of the largest number and 1."""
    powers = [mpmath.exp(mpmath.mpf(float(v))) if v > -np.inf else mpmath.mpf(0) for v in x]
    total = mpmath.fsum(powers)
    logarithm = mpmath.log(total)
    logp = [mpmath.mpf(float(v)) - logarithm if v > -np.inf else mpmath.mpf("-inf") for v in x]
    return RowResults(wide([e / total for e in powers]), wide(logp), wide([logarithm])[0])


def wide(numbers):
    """mpmath's numbers as long doubles: mantissas in two doubles, which hold more than 64 bits."""
    converted = []
    for number in numbers:
        mantissa, exponent = mpmath.frexp(number) if mpmath.isfinite(number) else (number, 0)
        high = float(mantissa)
        low = float(mantissa - high) if np.isfinite(high) else 0.0
        exponent = int(min(max(exponent, -40_000), 40_000))
        converted.append(np.ldexp(Wide(high) + Wide(low), exponent))
    return np.array(converted, Wide)


def spacing(exact, dtype):
    """The distance of neighbouring numbers of `dtype` where `exact` lies: an ULP, for subnormals theirs."""
    with np.errstate(all="ignore"):
        magnitude = np.abs(np.asarray(exact, Wide))
        nearest = magnitude.astype(dtype)
        below = np.where(nearest.astype(Wide) > magnitude, np.nextafter(nearest, dtype(0)), nearest)
        return np.spacing(below.astype(dtype)).astype(Wide)


def ulp_error(got, exact, dtype):
    """How far `got` is from `exact`, in units of `spacing`; infinite where one of them alone is a NaN.

    Where `exact` is beyond what `dtype` can hold, only the infinity it rounds to is right.
    """
    got, exact = np.asarray(got), np.asarray(exact, Wide)
    with np.errstate(all="ignore"):
        rounded = exact.astype(dtype)
        error = np.abs(got.astype(Wide) - exact) / spacing(exact, dtype)
        error = np.where(np.isfinite(rounded) & np.isfinite(got), error, np.inf)
    same = (np.isnan(got) & np.isnan(exact)) | (np.isinf(rounded) & (got == rounded))
    return np.where(same, 0, error).astype(np.float64)


class Loss(NamedTuple):
    """The reduced loss and its gradient; `terms` and `gradient_terms` sum the magnitudes they are sums of."""

    loss: np.ndarray
    gradient: np.ndarray
    terms: np.ndarray
    gradient_terms: np.ndarray


def cross_entropy(
    logits, labels, *, weight=None, sample_weight=None, ignore_index=None, label_smoothing=0.0, z_loss=0.0,
    reduction="mean", grad_loss=1.0,
):  # fmt: skip
    """The loss of 2-d logits as the library's docstring words it: ignored rows are deleted, the rest one by one."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    count, n = logits.shape
    class_weight = np.ones(n, Wide) if weight is None else np.asarray(weight).astype(Wide)
    row_weights = np.ones(count, Wide) if sample_weight is None else np.asarray(sample_weight).astype(Wide)
    upstream = np.broadcast_to(np.asarray(grad_loss).astype(Wide), count)
    smoothing = Wide(label_smoothing)
    losses, terms, denominator = np.zeros(count, Wide), np.zeros(count, Wide), Wide(0)
    gradient, gradient_terms = np.zeros((count, n), Wide), np.zeros((count, n), Wide)
    for i in range(count):
        is_index = labels.ndim == 1
        if row_weights[i] == 0 or (is_index and ignore_index is not None and labels[i] == ignore_index):
            continue
        y = (np.arange(n) == labels[i] if is_index else labels[i]).astype(Wide)
        share = class_weight[labels[i]] if is_index else Wide(1)
        # torch smooths a class index after it has been weighted by its label's weight.
        targets = y * (1 - smoothing) * share if is_index else y * (1 - smoothing) * class_weight
        targets = targets + smoothing / n * class_weight
        row = rows(logits[i])
        used = targets != 0
        z = Wide(z_loss) * share
        parts = np.append(-targets[used] * row.log_softmax[used], z * row.logsumexp**2)
        losses[i], terms[i] = row_weights[i] * parts.sum(), abs(row_weights[i]) * np.abs(parts).sum()
        slope = targets.sum() + 2 * z * row.logsumexp
        slope_terms = np.abs(targets).sum() + abs(2 * z * row.logsumexp)
        gradient[i] = row_weights[i] * (slope * row.softmax - targets)
        gradient_terms[i] = abs(row_weights[i]) * (slope_terms * row.softmax + np.abs(targets))
        denominator += row_weights[i] * share
    if reduction == "none":
        factor = upstream[:, np.newaxis]
        return Loss(losses, gradient * factor, terms, gradient_terms * abs(factor))
    divisor = denominator if reduction == "mean" else Wide(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = np.where(gradient_terms == 0, 0, Wide(grad_loss) / divisor)
        return Loss(losses.sum() / divisor, gradient * factor, terms.sum() / abs(divisor), gradient_terms * abs(factor))
