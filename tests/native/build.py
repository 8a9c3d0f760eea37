"""Build the C driver (or the fuzzer) of this folder with any compiler, for any machine.

    python tests/native/build.py FOLDER                                   gcc, this machine
    python tests/native/build.py FOLDER --cc clang --extra=-fsanitize=address,undefined
    python tests/native/build.py FOLDER --cc aarch64-linux-gnu-gcc --machine aarch64 --static
    python tests/native/build.py FOLDER --cc musl-gcc --no-openmp --static

prints the path of the program;

    python tests/native/build.py --write-digests

writes digests.txt anew with gcc's driver, after a change that is meant to change results.

Instruction sets, options and sources are those of setup.py:
its assignments are run here, for the machine asked for, without its call of setup().
"""

import argparse
import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAMS = {"driver": ["driver.c", "cases.c"], "fuzz": ["fuzz.c", "cases.c"], "every_float": ["every_float.c"]}


def settings(machine=None):
    """What setup.py's own assignments give: INSTRUCTION_SETS, OPTIONS, CORE_SOURCES."""
    found = {
        "os": os,
        "sys": sys,
        "Path": Path,
        "platform": SimpleNamespace(machine=lambda: machine or platform.machine()),
    }
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign | ast.AugAssign | ast.If):
            exec(compile(ast.Module([statement], []), "setup.py", "exec"), found)
    return SimpleNamespace(**{name: found[name] for name in ("INSTRUCTION_SETS", "OPTIONS", "CORE_SOURCES")})


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def has_openmp(compiler):
    """Whether -fopenmp works with this compiler, as setup.py asks it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }")
        command = [*compiler, "-fopenmp", str(source), "-o", str(Path(folder) / "probe")]
        return subprocess.run(command, capture_output=True).returncode == 0


def build(folder, cc="gcc", machine=None, extra=(), openmp=True, program="driver", runtime=None, static=False):
    """Compile into the folder; returns the program and the compilers' messages.

    Objects already in the folder and newer than all sources are kept, so that a second
    program, or one without OpenMP, costs little. `runtime` is a source that takes the place
    of OpenMP's own runtime (tsan_threads.c).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    options = settings(machine)
    compiler, extra = cc.split(), list(extra)
    openmp = ["-fopenmp"] if openmp and has_openmp(compiler) else []
    suffix = "openmp" if openmp else "serial"
    base = [*compiler, *options.OPTIONS, *extra]
    inputs = [*(ROOT / "csrc").glob("*.[ch]"), *HERE.glob("*.[ch]"), ROOT / "setup.py"]
    newest = max(path.stat().st_mtime for path in inputs)

    jobs = []
    for name, (vector_bytes, flags) in options.INSTRUCTION_SETS.items():
        for bits in (32, 64):
            table = f"kernels_f{bits}_{name}"
            macros = [f"-DREAL_BITS={bits}", f"-DVECTOR_BYTES={vector_bytes}", f"-DKERNELS={table}"]
            jobs.append((ROOT / "csrc/row_kernels.c", folder / f"{table}.o", [*base, *flags, *macros]))
    for source in options.CORE_SOURCES:
        target = folder / f"{Path(source).stem}_{suffix}.o"
        jobs.append((ROOT / source, target, [*base, *openmp]))
    for source in [*PROGRAMS[program], *([runtime] if runtime else [])]:
        target = folder / f"{Path(source).stem}_{suffix}.o"
        jobs.append((HERE / source, target, [*base, *openmp, f"-I{ROOT / 'csrc'}"]))

    def compile_one(job):
        source, target, command = job
        if target.exists() and target.stat().st_mtime > newest:
            return ""
        return run([*command, "-c", str(source), "-o", str(target)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        messages = list(pool.map(compile_one, jobs))
    path = folder / f"{program}_{suffix}"
    objects = [str(target) for _, target, _ in jobs]
    ending = [*([] if runtime else openmp), *(["-static"] if static else []), "-pthread", "-lm"]
    messages.append(run([*compiler, *extra, *objects, *ending, "-o", str(path)]))
    return path, "".join(messages)


def vector_instructions(folder):
    """AVX instructions in the objects that run before any instruction set is chosen.

    Every AVX mnemonic begins with a v, as no baseline one in compiled C does but verr, verw
    and the virtualisation ones.
    """
    found = []
    for path in sorted(Path(folder).glob("*.o")):
        if re.search(r"_avx|^cases|^driver|^every_float|^fuzz", path.name):
            continue
        for line in run(["objdump", "-d", "--no-show-raw-insn", str(path)]).splitlines():
            instruction = line.partition("\t")[2]
            if re.match(r"v(?!er[rw]\b|m[a-z]+\b(?!ov))|.*%[yz]mm", instruction):
                found.append(f"{path.name}: {instruction}")
    return found


def emulator(name):
    """The path of a qemu user-mode emulator, or None."""
    return shutil.which(name) or shutil.which(f"{name}-static")


DIGESTS_HEADER = """\
# Digests (64-bit FNV-1a) of every operation's results over the inputs of cases.c, the same on
# every machine, compiler and instruction set: tests/test_native.py compares them.
# Written anew by: python tests/native/build.py --write-digests
"""


def write_digests():
    """Refuses digests on which the instruction sets, layouts or threads here do not agree."""
    with tempfile.TemporaryDirectory() as folder:
        path, _ = build(folder)
        lines = [run([str(path), "--digest", *mode]) for mode in (["--quick"], [])]
    (HERE / "digests.txt").write_text(DIGESTS_HEADER + "".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--write-digests", action="store_true")
    parser.add_argument("--cc", default=os.environ.get("CC", "gcc"))
    parser.add_argument("--machine", help="x86_64 or aarch64; default: this one's")
    parser.add_argument("--extra", action="append", default=[], help="an option for compiling and linking")
    parser.add_argument("--no-openmp", action="store_true")
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--program", choices=PROGRAMS, default="driver")
    given = parser.parse_args()
    if given.write_digests:
        return write_digests()
    if not given.folder:
        parser.error("the folder to build in is missing")
    openmp = not given.no_openmp
    path, messages = build(
        given.folder, given.cc, given.machine, given.extra, openmp, given.program, static=given.static
    )
    print(messages, end="", file=sys.stderr)
    print(path)


if __name__ == "__main__":
    main()
