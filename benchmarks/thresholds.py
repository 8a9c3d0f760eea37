"""The size of a work from which a second thread pays: PARALLEL_ELEMENTS in csrc/run.c.

    python benchmarks/thresholds.py

One call is made with one thread and with all of them, at sizes around the threshold: back to
back, when the workers are awake, and after a pause, when they sleep. The library decides by the
size alone, so both are measured in a copy of it, built here with the threshold lowered.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from cases import Case

import fastsoftmax as fsm
from fastsoftmax._timing import Call

ROOT = Path(__file__).resolve().parent.parent
LOWERED = 1024
WORKS = (("softmax", 10), ("softmax", 1000), ("logsumexp", 10), ("logsumexp", 1000))


def best_seconds(call: Call, pause: float, samples: int) -> float:
    """The best time of a call that comes `pause` seconds after the one before (tenth percentile)."""
    taken = []
    for _ in range(samples):
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return float(np.quantile(taken, 0.1))


def build_lowered(folder: Path) -> None:
    """A copy of the library that takes all threads from LOWERED elements on (a minute or two)."""
    for name in ("csrc", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    source = folder / "csrc" / "run.c"
    changed, count = re.subn(
        r"#define PARALLEL_ELEMENTS .*",
        f"#define PARALLEL_ELEMENTS ((ptrdiff_t){LOWERED})",
        source.read_text(),
    )
    if count != 1:
        raise SystemExit("csrc/run.c no longer defines PARALLEL_ELEMENTS in one place")
    source.write_text(changed)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def measure_all(samples: int) -> None:
    """Print the gain by threads for each work and size."""
    print(f"{fsm.get_num_threads()} threads; one thread's time divided by theirs: above 1 they pay")
    print(f"{'work':18} {'elements':>9} {'one thread':>13} {'back to back':>13} {'after a pause':>14}")
    for function, n in WORKS:
        for elements in (2**k for k in range(11, 21)):
            logits = Case(function, (max(1, elements // n), n)).make().logits
            apply = getattr(fsm, function)

            def call(apply=apply, logits=logits):
                return apply(logits)

            times = {}
            for pause, count in ((0.0, samples), (0.02, samples // 4)):
                with fsm.num_threads(1):
                    times["alone", pause] = best_seconds(call, pause, count)
                times["team", pause] = best_seconds(call, pause, count)
            gains = [times["alone", pause] / times["team", pause] for pause in (0.0, 0.02)]
            alone = f"{times['alone', 0.0] * 1e6:.1f} us"
            print(
                f"{function + f' of {n}':18} {elements:9} {alone:>13} {gains[0]:13.2f} {gains[1]:14.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="calls at each size (default 200)")
    parser.add_argument("--measure", action="store_true", help="measure the library that is imported, as it is")
    options = parser.parse_args()
    if options.measure:
        measure_all(options.samples)
        return
    with tempfile.TemporaryDirectory() as name:
        build_lowered(Path(name))
        command = [sys.executable, __file__, "--measure", "--samples", str(options.samples)]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(Path(name) / "src")}, check=True)


if __name__ == "__main__":
    main()
