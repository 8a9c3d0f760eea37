"""Softmax, log-softmax, logsumexp and cross-entropy for NumPy arrays.

The default axis is the last one; `fastsoftmax.special` has SciPy's signatures and defaults.
"""

from importlib.metadata import version

from fastsoftmax import _core, _functions, _losses
from fastsoftmax import reference as reference
from fastsoftmax import special as special
from fastsoftmax._config import choose_instruction_set as _choose_instruction_set
from fastsoftmax._config import get_config, show_config
from fastsoftmax._core import __pyx_capi__ as __pyx_capi__  # the row functions, for C
from fastsoftmax._core import (
    log_softmax,
    logsumexp,
    softmax,
    softmax_cross_entropy,
    softmax_cross_entropy_grad,
    softmax_cross_entropy_value_and_grad,
)
from fastsoftmax._functions import log_softmax_vjp, selected_log_softmax, softmax_jacobian, softmax_vjp
from fastsoftmax._losses import softmax_cross_entropy_grad_hess
from fastsoftmax._threads import get_num_threads, num_threads, set_num_threads
from fastsoftmax._threads import initialise as _initialise_threads

__version__ = version("fastsoftmax")

__all__ = [
    "get_config",
    "get_num_threads",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "num_threads",
    "selected_log_softmax",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_grad",
    "softmax_cross_entropy_grad_hess",
    "softmax_cross_entropy_value_and_grad",
    "softmax_jacobian",
    "softmax_vjp",
]

_choose_instruction_set()
_initialise_threads()
_core.general_softmax = _functions.softmax
_core.general_log_softmax = _functions.log_softmax
_core.general_logsumexp = _functions.logsumexp
_core.general_softmax_cross_entropy = _losses.softmax_cross_entropy
_core.general_softmax_cross_entropy_grad = _losses.softmax_cross_entropy_grad
_core.general_softmax_cross_entropy_value_and_grad = _losses.softmax_cross_entropy_value_and_grad
