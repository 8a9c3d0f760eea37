"""The C library without Python: the driver of tests/native, built and run in several ways.

Every run must print the digests of tests/native/digests.txt: the same bytes for every
instruction set, layout, number of threads, compiler and architecture. What takes longer runs
with FASTSOFTMAX_LONG=1, and tests/native/long.py has the rest (sanitizers, fuzzing).
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).parent / "native"
sys.path.insert(0, str(NATIVE))
import build  # noqa: E402

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or os.name != "posix", reason="the native tests need gcc and POSIX"
)
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
LONG = bool(os.environ.get("FASTSOFTMAX_LONG"))


def committed(mode):
    lines = (NATIVE / "digests.txt").read_text().splitlines()
    return [line for line in lines if line.startswith(f"{mode} ")]


def check(command, mode="quick"):
    """Run a driver in a mode and compare its digests with the committed ones."""
    # Threads that wait must not spin: there may be more of them than processors here.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    options = ["--digest", *(["--quick"] if mode == "quick" else [])]
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == committed(mode)
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def driver(folder):
    path, messages = build.build(folder / "gcc")
    assert not messages, "the library compiles without warnings"
    return path


def test_instruction_sets_layouts_threads(driver):
    check([driver], "full")


def test_results_are_right(driver):
    done = subprocess.run([driver, *([] if LONG else ["--quick"])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_exponentials_and_logarithms(folder):
    """Of float32: one bit pattern in 10,007 here, every one in long.py."""
    path, messages = build.build(folder / "gcc", program="every_float")
    assert not messages
    done = subprocess.run([path, *([] if LONG else ["--step", "10007"])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("bits", [32, 64])
def test_limits_compile(bits):
    """The roofline of the benchmarks is made of the kernels' own headers."""
    root = NATIVE.parents[1]
    macros = [f"-DREAL_BITS={bits}", "-DVECTOR_BYTES=16", f"-I{root / 'csrc'}"]
    options = ["-std=c11", "-fopenmp", "-Wno-psabi", "-fsyntax-only"]
    command = ["gcc", *options, *macros, str(root / "benchmarks" / "limits.c")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.stderr


def test_without_openmp(driver, folder):
    path, messages = build.build(folder / "gcc", openmp=False)
    assert not messages
    check([path])


@pytest.mark.skipif(shutil.which("clang") is None, reason="no clang")
def test_clang_gives_the_same(folder):
    path, messages = build.build(folder / "clang", cc="clang")
    assert not messages, "the library compiles without warnings"
    check([path], "full" if LONG else "quick")


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None or build.emulator("qemu-aarch64") is None,
    reason="no aarch64-linux-gnu-gcc or no qemu-aarch64",
)
def test_aarch64_gives_the_same(folder):
    # A static program with libgomp would warn of dlopen.
    path, messages = build.build(
        folder / "aarch64", cc="aarch64-linux-gnu-gcc", machine="aarch64", openmp=False, static=True
    )
    assert not messages, "the library compiles without warnings"
    check([build.emulator("qemu-aarch64"), path], "full" if LONG else "quick")


@pytest.mark.skipif(not IS_X86 or build.emulator("qemu-x86_64") is None, reason="no qemu-x86_64, or not x86-64")
def test_processor_without_avx(driver):
    """A stray AVX instruction would be an illegal one here."""
    check([build.emulator("qemu-x86_64"), "-cpu", "Nehalem", driver, *([] if LONG else ["--once"])])


@pytest.mark.skipif(not IS_X86 or shutil.which("objdump") is None, reason="no objdump, or not x86-64")
def test_no_avx_outside_its_kernels(driver):
    assert build.vector_instructions(driver.parent) == []
