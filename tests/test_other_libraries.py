"""Tensors and arrays of other libraries as arguments; no library is imported for its containers' sake."""

import subprocess
import sys

import numpy as np
import pytest

import fastsoftmax as fsm
from fastsoftmax._arrays import as_ndarray

X = np.random.default_rng(0).normal(0, 4, (3, 5)).astype(np.float32)


class Exporter:
    """An array of a library that speaks DLPack and nothing else, on a device of the given type."""

    def __init__(self, values, device_type=1):
        self.values = values
        self.device_type = device_type

    def __dlpack_device__(self):
        return self.device_type, 0

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)


class SilentCopier(Exporter):
    """One that would copy from its device without a word, as JAX does."""

    def __array__(self, dtype=None, copy=None):
        return self.values


def calls():
    labels = np.array([0, 3, 1])
    g = X[::-1].copy()
    weight = np.linspace(1, 2, 5)
    yield lambda a: fsm.softmax(a(X))
    yield lambda a: fsm.log_softmax(a(X), 0, temperature=a(np.full((1, 5), 2.0)), where=a(X > 0))
    yield lambda a: fsm.logsumexp(a(X), b=a(g), return_sign=True)[0]
    yield lambda a: fsm.softmax_vjp(a(X), a(g))
    yield lambda a: fsm.softmax_jacobian(a(X))
    yield lambda a: fsm.selected_log_softmax(a(X), a(labels))
    yield lambda a: fsm.softmax_cross_entropy(a(X), a(labels), weight=a(weight), sample_weight=a(weight[:3]))
    yield lambda a: fsm.softmax_cross_entropy_grad(a(X), a(np.abs(g)), reduction="none", grad_loss=a(weight[:3]))


def assert_taken(make):
    for call in calls():
        got = call(make)
        assert isinstance(got, np.ndarray | np.generic)
        np.testing.assert_array_equal(got, call(lambda values: values))


def test_arrays_that_speak_dlpack_alone():
    assert_taken(Exporter)
    assert np.shares_memory(as_ndarray(Exporter(X), "x"), X)


def test_torch():
    torch = pytest.importorskip("torch")
    assert_taken(torch.from_numpy)
    assert np.shares_memory(as_ndarray(torch.from_numpy(X), "x"), X)
    assert_taken(lambda values: torch.from_numpy(np.repeat(values, 2, axis=-1))[..., ::2])


def test_torch_that_has_no_values_to_show():
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(X)
    with pytest.raises(TypeError, match=r"x is a torch\.Tensor that requires grad, .* \.detach\(\)\.cpu\(\)"):
        fsm.softmax(tensor.clone().requires_grad_())
    with pytest.raises(TypeError, match=r"labels is a torch\.Tensor that requires grad"):
        fsm.softmax_cross_entropy(X, tensor.clone().requires_grad_())
    for tensor in (torch.empty(3, device="meta"), torch.ones(3).to_sparse(), torch.ones(3, dtype=torch.bfloat16)):
        with pytest.raises(TypeError, match=r"x is a torch\.Tensor that cannot be read"):
            fsm.softmax(tensor)


def test_jax():
    jnp = pytest.importorskip("jax.numpy")
    values = jnp.asarray(X)
    np.testing.assert_array_equal(fsm.softmax(values), fsm.softmax(X))
    assert as_ndarray(values, "x").__array_interface__["data"][0] == values.unsafe_buffer_pointer()
    assert str(fsm.softmax(jnp.ones(3, jnp.bfloat16)).dtype) == "bfloat16"
    labels = jnp.array([0, 3, 1])
    np.testing.assert_array_equal(
        fsm.softmax_cross_entropy_grad(values, labels), fsm.softmax_cross_entropy_grad(X, np.array([0, 3, 1]))
    )


def test_a_function_under_jax_jit():
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="x "):
        jax.jit(fsm.softmax)(X)


@pytest.mark.parametrize("kind", [Exporter, SilentCopier])
@pytest.mark.parametrize("device_type", [2, 8, 10], ids=["CUDA", "Metal", "ROCm"])
def test_arrays_on_another_device(kind, device_type):
    there = kind(X, device_type)
    for name, call in {
        "x": lambda: fsm.softmax(there),
        "b": lambda: fsm.logsumexp(X, b=there),
        "where": lambda: fsm.softmax(X, where=there),
        "p": lambda: fsm.softmax_jacobian(there),
        "logits": lambda: fsm.softmax_cross_entropy(there, [0, 1, 2]),
        "labels": lambda: fsm.softmax_cross_entropy_grad(X, there),
    }.items():
        message = (
            rf"{name} is a {kind.__module__}\.{kind.__name__} on DLPack device {device_type}:0, "
            r"expected one in the CPU's memory: copy it to the CPU first$"
        )
        with pytest.raises(TypeError, match=message):
            call()


def test_a_torch_tensor_on_another_device(monkeypatch):
    monkeypatch.setattr(Exporter, "__module__", "torch")
    with pytest.raises(TypeError, match=r"x is a torch\.Exporter on .*: pass \.detach\(\)\.cpu\(\) of it$"):
        fsm.softmax(Exporter(X, 2))


def test_nothing_is_imported():
    program = """
import sys
import numpy as np, fastsoftmax as fsm
class Wrapped:
    def __array__(self, dtype=None, copy=None): return np.ones(3)
fsm.softmax(Wrapped()); fsm.logsumexp([1.0], b=[2.0]); fsm.softmax_cross_entropy([[1.0]], [0], reduction="none")
loaded = {"pandas", "xarray", "dask", "torch", "jax"} & set(sys.modules)
assert not loaded, loaded
assert not [name for name in sys.modules if name in ("fastsoftmax._pandas", "fastsoftmax._xarray", "fastsoftmax._dask")]
"""
    subprocess.run([sys.executable, "-c", program], check=True)
