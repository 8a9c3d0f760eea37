"""The long run: every compiler, sanitizers, valgrind, emulators, every float32, 100,000 calls, fuzzing.

    python tests/native/long.py [--fuzz EXECUTIONS] [--only WORD ...]

prints a table and, unless --only is given, writes it to tests/native/long_results.txt with
date, machine and commit. What a machine cannot run (no clang, no qemu ...) is named as not
run. As many steps run side by side as there are processors, then the fuzzers on all of them.

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
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build

HERE = Path(__file__).resolve().parent
SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


class NotHere(Exception):
    """A tool that this machine lacks."""


building = threading.Lock()
programs = {}


def built(folder, name, **options):
    """The program in this subfolder, built once and nothing beside it: a build takes all processors."""
    key = folder / name, options.get("program")
    with building:
        if key not in programs:
            programs[key], _messages = build.build(folder / name, **options)
    return programs[key]


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
    return drive([built(folder, "gcc")], "full")


def clang(folder, _):
    need("clang")
    return drive([built(folder, "clang", cc="clang")], "full")


def musl(folder, _):
    need("musl-gcc")
    return drive([built(folder, "musl", cc="musl-gcc", openmp=False, static=True)], "full")


def aarch64(folder, _):
    need("aarch64-linux-gnu-gcc", "qemu-aarch64")
    path = built(folder, "aarch64", cc="aarch64-linux-gnu-gcc", machine="aarch64", openmp=False, static=True)
    return drive(["qemu-aarch64", path, "--digest"], "full")


def nehalem(folder, _):
    need("gcc", "qemu-x86_64")
    return drive(["qemu-x86_64", "-cpu", "Nehalem", built(folder, "gcc"), "--quick", "--digest"], "quick")


def no_stray_avx(folder, _):
    need("objdump", "gcc", "clang")
    for name in ("gcc", "clang"):
        built(folder, name, cc=name)
        found = build.vector_instructions(folder / name)
        assert not found, "\n".join(found[:10])
    return "none in the objects of gcc and clang"


def address_and_undefined(folder, _):
    need("clang")
    path = built(folder, "asan", cc="clang", extra=SANITIZED)
    return drive([path], "full", ASAN_OPTIONS="detect_leaks=1")


def threads(folder, _):
    need("gcc", "setarch")
    best = instruction_sets(built(folder, "gcc"))[0]
    path = built(folder, "tsan", extra=["-g", "-fsanitize=thread"], runtime="tsan_threads.c")
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
    path = built(folder, "valgrind", extra=["-g"], openmp=False)
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
    return drive([built(folder, "gcc"), "--huge"])


def every_float(folder, _):
    need("gcc")
    return drive([built(folder, "gcc", program="every_float")])


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
    return drive([built(folder, "gcc"), "--stress", "30"])


def fuzz(folder, executions):
    return run_fuzzer(folder, "fuzz", executions, [])


def fuzz_sanitized(folder, executions):
    """The sanitizers make it ten times slower, and operands lie between guard pages anyway."""
    return run_fuzzer(folder, "fuzz_sanitized", executions // 50, SANITIZED)


def fuzz_api(folder, executions):
    """In Python: of the package that is installed."""
    if importlib.util.find_spec("atheris") is None:
        raise NotHere("no atheris")
    total = run_jobs([sys.executable, HERE / "fuzz_api.py"], folder / "fuzz_api", executions // 10, 300)
    return f"{total} executions; no finding"


def run_fuzzer(folder, name, executions, extra):
    need("clang")
    path = built(folder, name, cc="clang", openmp=False, program="fuzz", extra=[*extra, "-fsanitize=fuzzer"])
    total = run_jobs([path], folder / name / "corpus", executions, 120)
    return f"{total} executions, each under every instruction set; no finding"


def run_jobs(command, corpus, executions, longest_input):
    """Shares them out among as many processes as there are processors; what was executed."""
    jobs = os.cpu_count()
    corpus.mkdir(exist_ok=True)
    # The entropic schedule takes three times as long as the executions themselves.
    options = [f"-max_len={longest_input}", "-entropic=0", "-rss_limit_mb=0"]
    options += [f"-runs={executions // jobs}", "-print_final_stats=1"]
    # To files: a pipe that is not read while another process is waited for would fill, and stop its writer.
    logs = [corpus.with_name(f"{corpus.name}_{job}.log") for job in range(jobs)]
    running = []
    for job, log in enumerate(logs):
        started = [*command, *options, f"-seed={job + 1}", f"-artifact_prefix={HERE}/", corpus]
        with log.open("w") as stream:
            running.append(subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=stream))
    total = 0
    for process, log in zip(running, logs, strict=True):
        code = process.wait()
        errors = log.read_text(errors="replace")
        if code:
            raise AssertionError(errors[-3000:])
        total += int(re.search(r"number_of_executed_units: (\d+)", errors)[1])
    return total


STEPS = {
    "100,000 calls of everything": growth,
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
    "several callers at once": callers,
}
#: Each takes all processors.
FUZZERS = {
    "libFuzzer": fuzz,
    "libFuzzer, a fiftieth, with sanitizers": fuzz_sanitized,
    "atheris on the Python functions, a tenth": fuzz_api,
}


def machine():
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    name = model[1] if model else platform.processor()
    return f"{name}, {os.cpu_count()} processors, {platform.platform()}"


def commit():
    code, out, _ = execute(["git", "-C", HERE, "describe", "--always", "--dirty"])
    return out.strip() if code == 0 else "unknown"


def run_step(name, step, folder, executions):
    """Its line of the table, and whether it failed."""
    start = time.perf_counter()
    failed = False
    try:
        result = f"passed: {step(folder, executions)}"
    except NotHere as reason:
        result = f"NOT RUN: {reason}"
    except (AssertionError, RuntimeError) as problem:
        result = f"FAILED: {problem}"
        failed = True
    return f"{name:44} {time.perf_counter() - start:7.0f} s  {result}", failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=10_000_000, help="executions of the fuzzer")
    parser.add_argument("--only", nargs="+", help="the steps whose names hold one of these words")
    given = parser.parse_args()
    lines = [f"tests/native/long.py, {datetime.date.today()}, commit {commit()}, {machine()}, fuzz {given.fuzz}", ""]
    print(lines[0], flush=True)
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        for steps, workers in ((STEPS, os.cpu_count()), (FUZZERS, 1)):
            wanted = [(n, s) for n, s in steps.items() if not given.only or any(word in n for word in given.only)]
            with ThreadPoolExecutor(workers) as pool:
                running = [pool.submit(run_step, *named, Path(temporary), given.fuzz) for named in wanted]
                for future in running:
                    line, failed = future.result()
                    lines.append(line)
                    failures.append(failed)
                    print(line, flush=True)
    if not given.only:
        (HERE / "long_results.txt").write_text("\n".join(lines) + "\n")
    raise SystemExit(any(failures))


if __name__ == "__main__":
    main()
