"""The names, signatures and defaults of scipy.special: change one import, keep the code.

The default ``axis=None`` takes all elements together, as it does there.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from fastsoftmax import _core
from fastsoftmax._arrays import Axis

__all__ = ["log_softmax", "logsumexp", "softmax"]


def softmax(x: ArrayLike, axis: Axis = None) -> Any:
    """Softmax of `x` along `axis`, as ``scipy.special.softmax``.

    Examples
    --------
    >>> from fastsoftmax.special import softmax
    >>> softmax([[0.0, 0.0], [0.0, 0.0]])
    array([[0.25, 0.25],
           [0.25, 0.25]])
    """
    return _core.softmax(x, axis)


def log_softmax(x: ArrayLike, axis: Axis = None) -> Any:
    """Logarithm of the softmax of `x` along `axis`, as ``scipy.special.log_softmax``.

    Examples
    --------
    >>> from fastsoftmax.special import log_softmax
    >>> log_softmax([0.0, float("-inf")])
    array([  0., -inf])
    """
    return _core.log_softmax(x, axis)


def logsumexp(
    a: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
) -> Any:
    """Logarithm of the sum of exponentials of `a`, as ``scipy.special.logsumexp``.

    Examples
    --------
    >>> from fastsoftmax.special import logsumexp
    >>> float(logsumexp([1.0, 1.0], b=[1.0, -1.0]))
    -inf
    """
    return _core.logsumexp(a, axis, b=b, keepdims=keepdims, return_sign=return_sign)
