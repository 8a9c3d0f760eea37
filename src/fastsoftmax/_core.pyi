from collections.abc import Callable, Hashable
from typing import Any, Unpack

from numpy.typing import ArrayLike, NDArray

from fastsoftmax._arrays import Axis
from fastsoftmax._losses import LossOptions

__pyx_capi__: dict[str, object]

SOFTMAX: int
LOG_SOFTMAX: int
LOGSUMEXP: int
SELECT: int
CROSS_ENTROPY: int
GRAD_HESS: int
SOFTMAX_VJP: int
LOG_SOFTMAX_VJP: int

general_softmax: Callable[..., Any]
general_log_softmax: Callable[..., Any]
general_logsumexp: Callable[..., Any]
general_softmax_cross_entropy: Callable[..., Any]
general_softmax_cross_entropy_grad: Callable[..., Any]
general_softmax_cross_entropy_value_and_grad: Callable[..., Any]

def softmax(
    x: ArrayLike,
    /,
    axis: Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> Any: ...
def log_softmax(
    x: ArrayLike,
    /,
    axis: Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> Any: ...
def logsumexp(
    x: ArrayLike,
    /,
    axis: Axis = -1,
    *,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> Any: ...
def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, /, axis: Hashable = -1, **loss_options: Unpack[LossOptions]
) -> Any: ...
def softmax_cross_entropy_grad(
    logits: ArrayLike,
    labels: ArrayLike,
    /,
    axis: Hashable = -1,
    *,
    grad_loss: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    **loss_options: Unpack[LossOptions],
) -> Any: ...
def softmax_cross_entropy_value_and_grad(
    logits: ArrayLike,
    labels: ArrayLike,
    /,
    axis: Hashable = -1,
    *,
    grad_loss: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    **loss_options: Unpack[LossOptions],
) -> tuple[Any, Any]: ...
def run(
    operation: int,
    x: NDArray[Any],
    axis: int,
    *,
    out: NDArray[Any] | None = None,
    second: NDArray[Any] | None = None,
    hessian: NDArray[Any] | None = None,
    labels: NDArray[Any] | None = None,
    sample_weight: NDArray[Any] | None = None,
    grad_loss: NDArray[Any] | None = None,
    temperature: NDArray[Any] | None = None,
    row_out: NDArray[Any] | None = None,
    sign_out: NDArray[Any] | None = None,
    class_weight: NDArray[Any] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    mean: bool = False,
    sum_losses: bool = False,
    grad_scale: float = 1.0,
    factor: float = 1.0,
    min_hess: float = 0.0,
) -> float: ...
def overlaps_itself(a: NDArray[Any]) -> bool: ...
def compiled_instruction_sets() -> list[str]: ...
def cpu_has(instruction_set: str) -> bool: ...
def choose_instruction_set(instruction_set: str) -> bool: ...
def openmp_runtime() -> str | None: ...
def processor_count() -> int: ...
def initialise_threads(limit: int, openmp_limit: int) -> None: ...
def thread_limit() -> int: ...
def request_threads(threads: int) -> None: ...
def limit_calling_thread(threads: int) -> int: ...
