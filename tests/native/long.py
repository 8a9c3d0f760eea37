"""The long run: every compiler, sanitizers, valgrind, emulators, every float32, 100,000 calls, fuzzing.

    python tests/native/long.py [--fuzz EXECUTIONS] [--only WORD ...]

prints a table and, unless --only is given, writes it to tests/native/long_results.txt with
date and machine. What a machine cannot run (no clang, no qemu ...) is named as not run.

ThreadSanitizer: GCC's build, with tsan_threads.c in the place of libgomp, which is not
instrumented. So the library's own sharing of work is examined, not libgomp's barriers.
"""

import argparse
import datetime
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import build

HERE = Path(__file__).resolve().parent
SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


class NotHere(Exception):
    """A tool that this machine lacks."""


def need(*tools):
    for tool in tools:
        if shutil.which(tool) is None:
            raise NotHere(f"no {tool}")


def committed(mode):
    return [line for line in (HERE / "digests.txt").read_text().splitlines() if line.startswith(f"{mode} ")]


def execute(command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment},
    )
    return done.returncode, done.stdout, done.stderr


def drive(command, mode=None, **environment):
    """Run a driver; its own last comment and, with a mode, the comparison of its digests."""
    code, out, errors = execute(command, **environment)
    if code:
        raise AssertionError(errors[-3000:] or f"exit status {code}")
    digests = [line for line in out.splitlines() if re.match("quick|large|full", line)]
    if mode and digests != committed(mode):
        raise AssertionError("other digests than the committed ones")
    comments = [line[2:] for line in out.splitlines() if line.startswith("# ")]
    return comments[-1] if comments else (out.splitlines()[-1] if not digests else "digests as committed")


def gcc(folder, _):
    need("gcc")
    return drive([build.build(folder / "gcc")[0]], "full")


def clang(folder, _):
    need("clang")
    return drive([build.build(folder / "clang", cc="clang")[0]], "full")


def musl(folder, _):
    need("musl-gcc")
    path, _messages = build.build(folder / "musl", cc="musl-gcc", openmp=False, static=True)
    return drive([path], "full")


def aarch64(folder, _):
    need("aarch64-linux-gnu-gcc", "qemu-aarch64")
    path, _messages = build.build(
        folder / "aarch64", cc="aarch64-linux-gnu-gcc", machine="aarch64", openmp=False, static=True
    )
    return drive(["qemu-aarch64", path, "--digest"], "full")


def nehalem(folder, _):
    need("gcc", "qemu-x86_64")
    path, _messages = build.build(folder / "gcc")
    return drive(["qemu-x86_64", "-cpu", "Nehalem", path, "--quick", "--digest"], "quick")


def no_stray_avx(folder, _):
    need("objdump")
    texts = []
    for name in ("gcc", "clang"):
        if not (folder / name).exists():
            continue
        found = build.vector_instructions(folder / name)
        assert not found, "\n".join(found[:10])
        texts.append(name)
    return f"none in the objects of {' and '.join(texts)}"


def address_and_undefined(folder, _):
    need("clang")
    path, _messages = build.build(folder / "asan", cc="clang", extra=SANITIZED)
    return drive([path], "full", ASAN_OPTIONS="detect_leaks=1")


def threads(folder, _):
    need("gcc", "setarch")
    best = instruction_sets(build.build(folder / "gcc")[0])[0]
    extra = ["-g", "-fsanitize=thread"]
    path, _messages = build.build(folder / "tsan", extra=extra, runtime="tsan_threads.c")
    # GCC 12's ThreadSanitizer cannot have its memory where newer kernels randomise it to.
    large = drive(["setarch", "-R", path, "--large", "--digest", "--isa", best])
    return f"large arrays: {large}; {drive(['setarch', '-R', path, '--stress', '30'])}"


def instruction_sets(path):
    """Those that this machine has, the best first, by the driver's own word."""
    return [
        name for name in ("avx512", "avx2", "neon", "scalar") if execute([path, "--isa", name, "--stress", "0"])[0] == 0
    ]


def valgrind(folder, _):
    need("gcc", "valgrind")
    path, _messages = build.build(folder / "valgrind", extra=["-g"], openmp=False)
    command = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--track-origins=yes"]
    # Valgrind's long double is a double, it knows no AVX-512, and its fused multiply-add gives +0
    # for a negative product that underflows, so that instruction sets differ: memory errors and
    # leaks are all it is asked for, of one instruction set at a time.
    isas = [isa for isa in instruction_sets(path) if isa != "avx512"]
    for isa in isas:
        drive([*command, path, "--quick", "--digest", "--isa", isa])
    return f"no memory error, no leak with {' and '.join(isas)}"


def huge(folder, _):
    need("gcc")
    return drive([build.build(folder / "gcc")[0], "--huge"])


def every_float(folder, _):
    need("gcc")
    return drive([build.build(folder / "gcc", program="every_float")[0]])


def growth(_folder, _):
    """In Python: of the package that is installed."""
    code, out, errors = execute(
        [sys.executable, "-m", "pytest", "-q", "-k", "growth", HERE.parent / "test_memory.py"], FASTSOFTMAX_LONG="1"
    )
    if code:
        raise AssertionError(f"{out[-3000:]}{errors[-3000:]}")
    return f"100,000 calls each of as many functions and errors as there are tests: {out.splitlines()[-1]}"


def callers(folder, _):
    need("gcc")
    return drive([build.build(folder / "gcc")[0], "--stress", "30"])


def fuzz(folder, executions):
    return run_fuzzer(folder / "fuzz", executions, [])


def fuzz_sanitized(folder, executions):
    """The sanitizers make it ten times slower, and operands lie between guard pages anyway."""
    return run_fuzzer(folder / "fuzz_sanitized", executions // 50, SANITIZED)


def fuzz_api(folder, executions):
    """In Python: of the package that is installed."""
    if importlib.util.find_spec("atheris") is None:
        raise NotHere("no atheris")
    total = run_jobs([sys.executable, HERE / "fuzz_api.py"], folder / "fuzz_api", executions // 10, 300)
    return f"{total} executions; no finding"


def run_fuzzer(folder, executions, extra):
    need("clang")
    extra = [*extra, "-fsanitize=fuzzer"]
    path, _messages = build.build(folder, cc="clang", openmp=False, program="fuzz", extra=extra)
    total = run_jobs([path], folder / "corpus", executions, 120)
    return f"{total} executions, each under every instruction set; no finding"


def run_jobs(command, corpus, executions, longest_input):
    """Shares them out among as many processes as there are processors; what was executed."""
    jobs = os.cpu_count()
    corpus.mkdir(exist_ok=True)
    # The entropic schedule takes three times as long as the executions themselves.
    options = [f"-max_len={longest_input}", "-entropic=0", "-rss_limit_mb=0"]
    options += [f"-runs={executions // jobs}", "-print_final_stats=1"]
    running = [
        subprocess.Popen(
            [*command, *options, f"-seed={job + 1}", f"-artifact_prefix={HERE}/", corpus],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for job in range(jobs)
    ]
    total = 0
    for process in running:
        _, errors = process.communicate()
        if process.returncode:
            raise AssertionError(errors[-3000:])
        total += int(re.search(r"number_of_executed_units: (\d+)", errors)[1])
    return total


STEPS = {
    "gcc, all of it": gcc,
    "clang, all of it": clang,
    "musl, all of it": musl,
    "aarch64 under qemu, all of it": aarch64,
    "x86-64 without AVX under qemu": nehalem,
    "AVX outside its kernels": no_stray_avx,
    "address and undefined-behaviour sanitizers": address_and_undefined,
    "thread sanitizer": threads,
    "valgrind memcheck": valgrind,
    "rows of more than 2**31 elements": huge,
    "exp and log of every float32": every_float,
    "100,000 calls of everything": growth,
    "several callers at once": callers,
    "libFuzzer": fuzz,
    "libFuzzer, a fiftieth, with sanitizers": fuzz_sanitized,
    "atheris on the Python functions, a tenth": fuzz_api,
}


def machine():
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    name = model[1] if model else platform.processor()
    return f"{name}, {os.cpu_count()} processors, {platform.platform()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=10_000_000, help="executions of the fuzzer")
    parser.add_argument("--only", nargs="+", help="the steps whose names hold one of these words")
    given = parser.parse_args()
    lines = [f"tests/native/long.py, {datetime.date.today()}, {machine()}", ""]
    print(lines[0], flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        for name, step in STEPS.items():
            if given.only and not any(word in name for word in given.only):
                continue
            start = time.perf_counter()
            try:
                result = f"passed: {step(Path(temporary), given.fuzz)}"
            except NotHere as reason:
                result = f"NOT RUN: {reason}"
            except (AssertionError, RuntimeError) as problem:
                result = f"FAILED: {problem}"
                failed = True
            lines.append(f"{name:44} {time.perf_counter() - start:7.0f} s  {result}")
            print(lines[-1], flush=True)
    if not given.only:
        (HERE / "long_results.txt").write_text("\n".join(lines) + "\n")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
