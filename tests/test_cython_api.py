"""The row functions for other extension modules: cimported by one built here, and by way of their capsules."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax as fsm

PREFIXES = {"softmax": fsm.softmax, "log_softmax": fsm.log_softmax, "logsumexp": fsm.logsumexp}
SUFFIXES = {"f32": (np.float32, "float"), "f64": (np.float64, "double")}
DONE, BAD_ARGUMENT = 0, 2

SETUP = """
    from Cython.Build import cythonize
    from setuptools import Extension, setup

    # A free-threaded interpreter warns of a module that does not say it does without the lock.
    directives = dict(language_level=3, freethreading_compatible=True)
    extension = Extension("rows", ["rows.pyx"])
    setup(ext_modules=cythonize(extension, include_path=[{include_path!r}], compiler_directives=directives))
"""

MODULE = """
    cimport fastsoftmax

    CODES = fastsoftmax.ROWS_DONE, fastsoftmax.ROWS_NO_MEMORY, fastsoftmax.ROWS_BAD_ARGUMENT
"""

FUNCTION = """
    def {name}(size_t x, ptrdiff_t x_stride, size_t out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n):
        with nogil:
            status = fastsoftmax.{name}(<const {real} *>x, x_stride, <{real} *>out, out_stride, rows, n)
        return status
"""


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    """A module of another project's that cimports fastsoftmax."""
    for tool in ("Cython", "setuptools"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed")
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC")
    if not compiler or shutil.which(compiler.split()[0]) is None:
        pytest.skip("no C compiler")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no Python.h")
    folder = tmp_path_factory.mktemp("extension")
    functions = [
        FUNCTION.format(name=f"{prefix}_rows_{suffix}", real=real)
        for prefix in PREFIXES
        for suffix, (_, real) in SUFFIXES.items()
    ]
    (folder / "rows.pyx").write_text("".join(map(textwrap.dedent, [MODULE, *functions])))
    include_path = str(Path(fsm.__file__).parents[1])
    (folder / "setup.py").write_text(textwrap.dedent(SETUP).format(include_path=include_path))
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    path = next(path for path in folder.iterdir() if path.suffix in (".so", ".pyd"))
    specification = importlib.util.spec_from_file_location("rows", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def capsules():
    """The same functions, taken from their capsules by ctypes."""
    python = ctypes.pythonapi
    python.PyCapsule_GetName.restype = ctypes.c_char_p
    python.PyCapsule_GetName.argtypes = [ctypes.py_object]
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_void_p, *[ctypes.c_ssize_t] * 3
    )

    class Capsules:
        def __getattr__(self, name):
            capsule = fsm.__pyx_capi__[name]
            return prototype(python.PyCapsule_GetPointer(capsule, python.PyCapsule_GetName(capsule)))

    return Capsules()


@pytest.fixture(params=["extension", "capsules"])
def library(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=PREFIXES)
def prefix(request):
    return request.param


@pytest.fixture(params=SUFFIXES)
def suffix(request):
    return request.param


def call(library, prefix, suffix, x, out):
    function = getattr(library, f"{prefix}_rows_{suffix}")
    return function(x.ctypes.data, x.strides[0], out.ctypes.data, out.strides[0], *x.shape)


def check(library, prefix, suffix, x, out):
    """The function's result in out is the Python function's, bit for bit."""
    expected = PREFIXES[prefix](x.copy())
    assert call(library, prefix, suffix, x, out) == DONE
    bits = f"u{out.dtype.itemsize}"
    np.testing.assert_array_equal(np.ascontiguousarray(out).view(bits), np.ascontiguousarray(expected).view(bits))


def rows_of(count, n, suffix):
    return (5 * np.random.default_rng(n).normal(size=(count, n))).astype(SUFFIXES[suffix][0])


def room_for(prefix, x):
    return np.full(x.shape[: 1 if prefix == "logsumexp" else 2], 77, x.dtype)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (19, 10), (5, 64), (2, 1000), (300, 1000), (3, 40_001)], ids=str)
def test_same_bits(library, prefix, suffix, shape):
    x = rows_of(*shape, suffix)
    check(library, prefix, suffix, x, room_for(prefix, x))


def test_row_strides(library, prefix, suffix):
    wide = rows_of(40, 100, suffix)
    for x in (wide[:, 7:60], wide[::3], wide[::-1], np.broadcast_to(wide[0], (6, 100))):
        out = room_for(prefix, x)
        check(library, prefix, suffix, x, out)
        check(library, prefix, suffix, x, np.concatenate([out, out])[::2])
        check(library, prefix, suffix, x, out[::-1])


@pytest.mark.parametrize("prefix", ["softmax", "log_softmax"], indirect=True)
def test_in_place(library, prefix, suffix):
    x = rows_of(30, 50, suffix)
    check(library, prefix, suffix, x, x)


def test_special_values(library, prefix, suffix):
    x = np.array([[0, -np.inf, 1], [np.inf, 0, 1], [-np.inf] * 3, [np.nan, 0, 1]], SUFFIXES[suffix][0])
    out = room_for(prefix, x)
    assert call(library, prefix, suffix, x, out) == DONE
    np.testing.assert_array_equal(out, PREFIXES[prefix](x))


def test_empty_rows(library, prefix, suffix):
    for shape in ((0, 5), (4, 0)):
        x = np.empty(shape, SUFFIXES[suffix][0])
        check(library, prefix, suffix, x, room_for(prefix, x))


def test_bad_arguments_write_nothing(library, prefix, suffix):
    x = rows_of(3, 8, suffix)
    out = room_for(prefix, x)
    function = getattr(library, f"{prefix}_rows_{suffix}")
    good = (x.ctypes.data, x.strides[0], out.ctypes.data, out.strides[0], *x.shape)
    for position, bad in [(0, 0), (0, good[0] + 1), (1, 33), (2, 0), (2, good[2] + 1), (3, 33), (4, -1), (5, -1)]:
        arguments = list(good)
        arguments[position] = bad
        assert function(*arguments) == BAD_ARGUMENT, (position, bad)
    assert np.all(out == 77)
    assert function(*good) == DONE


def test_return_codes(extension):
    assert extension.CODES == (DONE, 1, BAD_ARGUMENT)
