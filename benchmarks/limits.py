"""The roofline: what this machine's memory and its vector units allow a softmax at best.

limits.c is compiled with the kernels' own headers and options, once for each dtype and
instruction set that is asked for; it is no part of the library.
"""

import ctypes
import os
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

import fastsoftmax as fsm
from fastsoftmax._timing import Call, measure

ROOT = Path(__file__).resolve().parent.parent
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
#: Bytes in a vector and compiler options, as in setup.py (which spares the scalar kernels -O3).
OPTIONS = {"scalar": (16, []), "neon": (16, []), "avx2": (32, AVX2), "avx512": (64, AVX512)}

#: Bytes from which the library writes past the caches, but transposed rows (STREAM_BYTES in csrc/run.c).
STREAM_BYTES = 16 << 20


@cache
def _library(isa: str, bits: int) -> ctypes.CDLL:
    vector_bytes, options = OPTIONS[isa]
    compiler = os.environ.get("CC") or (sysconfig.get_config_var("CC") or "cc").split()[0]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "limits.so"
        macros = [f"-DREAL_BITS={bits}", f"-DVECTOR_BYTES={vector_bytes}"]
        flags = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
        source = str(ROOT / "benchmarks" / "limits.c")
        places = [f"-I{ROOT / 'csrc'}", source, "-o", str(target)]
        subprocess.run([compiler, "-shared", "-fPIC", "-Wno-psabi", *flags, *options, *macros, *places], check=True)
        library = ctypes.CDLL(str(target))
    pointer, size, count = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
    for copy in (library.copy_streaming, library.copy_cached):
        copy.argtypes, copy.restype = [pointer, pointer, size, count], None
    library.sum_exponentials.argtypes, library.sum_exponentials.restype = [size, count], ctypes.c_double
    library.exponentials_in_a_repeat.restype = size
    return library


def copy_call(source: np.ndarray) -> Call:
    """A copy of `source` by all threads into one array, the way its size asks for."""
    library, threads = _library("scalar", 32), fsm.get_num_threads()
    target = np.zeros_like(source)
    copy = library.copy_streaming if source.nbytes >= STREAM_BYTES else library.copy_cached
    addresses = target.ctypes.data, source.ctypes.data, source.nbytes, threads
    keep = (source, target)
    return lambda: (copy(*addresses), keep)


def exponentials_a_second(dtype: str) -> float:
    """How many exponentials all threads take a second on the instruction set in use."""
    library, threads = _library(fsm.get_config()["isa"], np.dtype(dtype).itemsize * 8), fsm.get_num_threads()
    repeats = 2000
    times = measure({"exp": lambda: library.sum_exponentials(repeats, threads)}, seconds=0.5)
    return threads * repeats * library.exponentials_in_a_repeat() / times["exp"].best


def main() -> None:
    print(f"{fsm.get_config()['isa']}, {fsm.get_num_threads()} threads")
    for dtype in ("float32", "float64"):
        print(f"{dtype}: {exponentials_a_second(dtype) / 1e9:.2f} exponentials a nanosecond")
    for megabytes in (0.5, 2, 8, 64, 256):
        source = np.ones(int(megabytes * 2**20), np.uint8)
        best = measure({"copy": copy_call(source)}, seconds=0.5)["copy"].best
        print(f"copy of {megabytes:g} MB: {source.nbytes / best / 1e9:.1f} GB/s read and as much written")


if __name__ == "__main__":
    main()
