"""One adapter for each library that fastsoftmax is compared with.

An adapter is made with a number of threads (ImportError where its library is missing) and
turns a piece of work into a call without arguments, all conversions done; None where the
library has no such function. With `reuse_output` a library that can write into a given
array does so; otherwise every call returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

import fastsoftmax as fsm
from fastsoftmax import reference
from fastsoftmax._timing import LOSS, Call, Work, without_axis


class Adapter(Protocol):
    def __init__(self, threads: int) -> None: ...

    def prepare(self, work: Work, reuse_output: bool) -> Call | None: ...


class PlainNumPy:
    """What one writes without a library, under fastsoftmax's names: no options, no care for infinities.

    An array of the logits' size is overwritten where it has served: a fresh one takes longer than
    what is computed into it.
    """

    @staticmethod
    def softmax(x: np.ndarray, axis: int = -1, out: np.ndarray | None = None) -> np.ndarray:
        p: np.ndarray = np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
        np.exp(p, out=p)
        p /= p.sum(axis=axis, keepdims=True)
        return p

    @staticmethod
    def log_softmax(x: np.ndarray, axis: int = -1, out: np.ndarray | None = None) -> np.ndarray:
        shifted: np.ndarray = np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
        shifted -= np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        return shifted

    @staticmethod
    def logsumexp(x: np.ndarray, axis: int = -1) -> Any:
        row_max = x.max(axis=axis, keepdims=True)
        exponentials = x - row_max
        np.exp(exponentials, out=exponentials)
        return np.log(exponentials.sum(axis=axis)) + row_max.squeeze(axis)

    @classmethod
    def softmax_cross_entropy_value_and_grad(
        cls, logits: np.ndarray, labels: np.ndarray, axis: int = -1, out: np.ndarray | None = None
    ) -> tuple[Any, np.ndarray]:
        if logits.ndim == 1:
            return cls._value_and_grad_of_row(logits, labels, out)
        # For a matrix of rows this is (np.arange(len(labels)), labels).
        rows, place = np.indices(labels.shape, sparse=True), axis % logits.ndim
        at_labels = (*rows[:place], labels, *rows[place:])
        p = np.subtract(logits, logits.max(axis=axis, keepdims=True), out=out)
        shifted = p[at_labels]
        np.exp(p, out=p)
        sums = p.sum(axis=axis, keepdims=True)
        loss = (np.log(sums.squeeze(axis)) - shifted).mean()
        p /= sums * labels.size
        p[at_labels] -= 1 / labels.size
        return loss, p

    @staticmethod
    def _value_and_grad_of_row(logits: np.ndarray, label: np.ndarray, out: np.ndarray | None) -> tuple[Any, np.ndarray]:
        """The same without what a single row does not need: half of a short one's time."""
        p = np.subtract(logits, logits.max(), out=out)
        shifted = p[label]
        np.exp(p, out=p)
        total = p.sum()
        p /= total
        p[label] -= 1
        return np.log(total) - shifted, p

    @classmethod
    def softmax_cross_entropy_grad_hess(
        cls, logits: np.ndarray, labels: np.ndarray, *, factor: float, min_hess: float = 0.0, sample_weight: None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        p = cls.softmax(logits)
        hessian = 1 - p
        hessian *= p
        hessian *= factor
        if min_hess:
            np.maximum(hessian, min_hess, out=hessian)
        p[np.arange(len(labels)), labels] -= 1
        return p, hessian


class NumPyInterface:
    """Functions of fastsoftmax's names and parameters."""

    def __init__(self, functions: Any) -> None:
        self.functions = functions

    def prepare(self, work: Work, reuse_output: bool) -> Call:
        function = getattr(self.functions, work.function)
        logits, labels, axis = work.logits, work.labels, work.axis
        if work.function == LOSS:
            if reuse_output:
                out = np.empty_like(logits)
                return lambda: function(logits, labels, axis, out=out)
            return lambda: function(logits, labels, axis)
        if reuse_output and work.function != "logsumexp":
            out = np.empty_like(logits)
            return lambda: function(logits, axis, out=out)
        return lambda: function(logits, axis)


class FastSoftmax(NumPyInterface):
    def __init__(self, threads: int) -> None:
        super().__init__(fsm)
        fsm.set_num_threads(threads)


class NumPy(NumPyInterface):
    """Computes on one thread."""

    def __init__(self, threads: int) -> None:
        super().__init__(PlainNumPy)


class Reference(NumPyInterface):
    """The specification, with every option: what a NumPy function with fastsoftmax's promises of form costs."""

    def __init__(self, threads: int) -> None:
        super().__init__(reference)


class SciPy:
    def __init__(self, threads: int) -> None:
        self.special = import_module("scipy.special")

    def prepare(self, work: Work, reuse_output: bool) -> Call | None:
        if work.function == LOSS:
            return None
        function, logits, axis = getattr(self.special, work.function), work.logits, work.axis
        return lambda: function(logits, axis=axis)


class Torch:
    def __init__(self, threads: int) -> None:
        self.torch = import_module("torch")
        self.torch.set_num_threads(threads)

    def prepare(self, work: Work, reuse_output: bool) -> Call | None:
        torch, axis = self.torch, work.axis
        logits = torch.from_numpy(work.logits)
        if work.function == LOSS:
            return self._prepare_loss(logits, torch.from_numpy(np.asarray(work.labels)), axis)
        function = getattr(torch, work.function)
        if reuse_output and work.function != "logsumexp":
            out = torch.empty_like(logits)
            return lambda: function(logits, axis, out=out)
        return lambda: function(logits, axis)

    def _prepare_loss(self, logits: Any, labels: Any, axis: int) -> Call:
        torch = self.torch
        # torch's classes lie on axis 1, a single row's on axis 0.
        leaf = logits.requires_grad_()
        classes = min(1, logits.ndim - 1)

        def loss_and_gradient() -> tuple[Any, Any]:
            loss = torch.nn.functional.cross_entropy(leaf.movedim(axis, classes), labels)
            return loss, torch.autograd.grad(loss, leaf)[0]

        return loss_and_gradient


class Jax:
    """Compiled before it is timed. Its threads follow the process's CPU affinity."""

    def __init__(self, threads: int) -> None:
        self.jax = import_module("jax")
        self.jax.config.update("jax_enable_x64", True)

    def prepare(self, work: Work, reuse_output: bool) -> Call | None:
        jax, axis = self.jax, work.axis
        numpy, nn = jax.numpy, jax.nn
        logits = numpy.asarray(work.logits)
        if work.function == LOSS:
            labels = numpy.asarray(work.labels, numpy.int32)

            def loss(values: Any, labels: Any) -> Any:
                picked = numpy.take_along_axis(values, numpy.expand_dims(labels, axis), axis)
                return numpy.mean(nn.logsumexp(values, axis) - numpy.squeeze(picked, axis))

            compiled = jax.jit(jax.value_and_grad(loss))
            return lambda: jax.block_until_ready(compiled(logits, labels))
        function = getattr(nn, work.function)
        compiled = jax.jit(lambda values: function(values, axis))
        return lambda: compiled(logits).block_until_ready()


ONNX_OPERATORS = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "logsumexp": "ReduceLogSumExp"}


class OnnxRuntime:
    def __init__(self, threads: int) -> None:
        self.onnx = import_module("onnx")
        self.runtime = import_module("onnxruntime")
        self.options = self.runtime.SessionOptions()
        self.options.intra_op_num_threads = threads

    def prepare(self, work: Work, reuse_output: bool) -> Call | None:
        if work.function not in ONNX_OPERATORS:
            return None
        logits = np.ascontiguousarray(work.logits)
        session = self.runtime.InferenceSession(
            self._model(work.function, logits, work.axis), self.options, providers=["CPUExecutionProvider"]
        )
        if not reuse_output:
            return lambda: session.run(None, {"x": logits})[0]
        shape = logits.shape if work.function != "logsumexp" else without_axis(logits.shape, work.axis)
        result = self.runtime.OrtValue.ortvalue_from_shape_and_type(shape, logits.dtype)
        binding = session.io_binding()
        binding.bind_cpu_input("x", logits)
        binding.bind_ortvalue_output("y", result)

        def run() -> Any:
            session.run_with_iobinding(binding)
            return result

        return run

    def _model(self, function: str, logits: np.ndarray, axis: int) -> bytes:
        """One operator as an ONNX model."""
        helper = self.onnx.helper
        real = helper.np_dtype_to_tensor_dtype(logits.dtype)
        reduces = function == "logsumexp"
        attributes = {"keepdims": 0} if reduces else {"axis": axis}
        inputs = ["x", "axes"] if reduces else ["x"]
        shape = without_axis(logits.shape, axis) if reduces else logits.shape
        graph = helper.make_graph(
            [helper.make_node(ONNX_OPERATORS[function], inputs, ["y"], **attributes)],
            function,
            [helper.make_tensor_value_info("x", real, logits.shape)],
            [helper.make_tensor_value_info("y", real, shape)],
            [helper.make_tensor("axes", self.onnx.TensorProto.INT64, [1], [axis])] if reduces else [],
        )
        opset = helper.make_opsetid("", 18)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
        return bytes(model.SerializeToString())


class ScikitLearn:
    """Its softmax, and the private loss inside its LogisticRegression: 2-D, last axis."""

    def __init__(self, threads: int) -> None:
        self.softmax = import_module("sklearn.utils.extmath").softmax
        self.losses = import_module("sklearn._loss")
        self.threads = threads

    def prepare(self, work: Work, reuse_output: bool) -> Call | None:
        logits = work.logits
        if logits.ndim != 2 or work.axis not in (-1, 1) or not logits.flags.c_contiguous:
            return None
        out = np.empty_like(logits) if reuse_output else None
        if work.function == "softmax":
            return self._prepare_softmax(logits, out)
        if work.function != LOSS:
            return None
        rows, classes = logits.shape
        loss = self.losses.HalfMultinomialLoss(n_classes=classes)
        labels = work.labels.astype(logits.dtype)
        weight = np.full(rows, 1 / rows, logits.dtype)  # the sum of these losses is their mean
        losses_out = np.empty_like(labels) if reuse_output else None

        def loss_and_gradient() -> tuple[Any, Any]:
            losses, gradient = loss.loss_gradient(labels, logits, weight, losses_out, out, n_threads=self.threads)
            return losses.sum(), gradient

        return loss_and_gradient

    def _prepare_softmax(self, logits: np.ndarray, out: np.ndarray | None) -> Call:
        if out is None:
            return lambda: self.softmax(logits)

        def overwrite() -> Any:
            np.copyto(out, logits)  # as it does itself where it may not overwrite its argument
            return self.softmax(out, copy=False)

        return overwrite


#: name in the tables: (adapter, distribution its version is read from)
OURS, BASELINE, REFERENCE = "fastsoftmax", "NumPy", "reference"
ADAPTERS: dict[str, tuple[Callable[[int], Adapter], str]] = {
    OURS: (FastSoftmax, "fastsoftmax"),
    BASELINE: (NumPy, "numpy"),
    REFERENCE: (Reference, "fastsoftmax"),
    "SciPy": (SciPy, "scipy"),
    "torch": (Torch, "torch"),
    "JAX": (Jax, "jax"),
    "ONNX Runtime": (OnnxRuntime, "onnxruntime"),
    "scikit-learn": (ScikitLearn, "scikit-learn"),
}
PEERS = tuple(name for name in ADAPTERS if name not in (OURS, BASELINE, REFERENCE))
#: what benchmarks compare, but for pytest's cases
CONTENDERS = (OURS, BASELINE, *PEERS)


def load(names: tuple[str, ...], threads: int) -> tuple[dict[str, Adapter], dict[str, str]]:
    """The adapters that can be had here, and for the others the reason why not."""
    found, missing = {}, {}
    for name in names:
        try:
            found[name] = ADAPTERS[name][0](threads)
        except ImportError as error:
            missing[name] = f"needs {(error.name or str(error)).partition('.')[0]}"
    return found, missing


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """The installed version behind each adapter."""
    result = {}
    for name in names:
        try:
            result[name] = version(ADAPTERS[name][1])
        except PackageNotFoundError:
            result[name] = "not installed as a distribution"
    return result


def prepare_checked(
    adapters: dict[str, Adapter], work: Work, reuse_output: bool = False
) -> tuple[dict[str, Call], dict[str, str]]:
    """A call for each contender that has the function and gives the right answer: that of the reference.

    Returns
    -------
    calls : dict of str to callable
    wrong : dict of str to str
        What the others did instead.
    """
    exact = Work(work.function, work.logits.astype(np.float64), work.axis, work.labels)
    expected = _arrays(NumPyInterface(reference).prepare(exact, False)())
    calls, wrong = {}, {}
    for name, adapter in adapters.items():
        try:
            call = adapter.prepare(work, reuse_output)
            if call is None:
                continue
            _check_answer(_arrays(call()), expected, work.logits.dtype)
        except Exception as error:  # a peer may fail in its own way: that is its result here
            wrong[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            calls[name] = call
    return calls, wrong


def _check_answer(results: list[np.ndarray], expected: list[np.ndarray], dtype: np.dtype) -> None:
    """Raise AssertionError unless it is this function's result, in this dtype."""
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    for got, want in zip(results, expected, strict=True):
        # Relative, but for the digits that peers lose beside the largest element.
        absolute = tolerance * 1e-3 * float(np.max(np.abs(want)))
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=absolute)
        if got.dtype != dtype:
            raise AssertionError(f"a result of {got.dtype}, expected {dtype}")


def _arrays(result: Any) -> list[np.ndarray]:
    """The result of any library as arrays."""
    parts = result if isinstance(result, tuple) else (result,)
    return [_array(part) for part in parts]


def _array(part: Any) -> np.ndarray:
    if hasattr(part, "detach"):  # torch
        return np.asarray(part.detach())
    return np.asarray(part.numpy() if hasattr(part, "numpy") else part)  # ONNX Runtime
