"""How many threads work, who may limit them, and that nothing hangs: forks, concurrent callers, the environment."""

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax as fsm
from fastsoftmax import _core, _threads

OPENMP = fsm.get_config()["openmp"] is not None
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

needs_openmp = pytest.mark.skipif(not OPENMP, reason="this build runs on one thread")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def default_threads(limit):
    """The smallest of OMP_NUM_THREADS, where it is a number, the affinity, the quota and OpenMP's own limit."""
    first = (limit or "").split(",")[0].strip()
    given = [int(first)] if first.isdecimal() and int(first) else []
    return min(CPUS, _threads._quota_threads() or CPUS, int(os.environ.get("OMP_THREAD_LIMIT", CPUS)), *given)


LARGE = np.random.default_rng(0).normal(size=(500, 1000)).astype(np.float32)


def run_python(code, **environment):
    """Run a script in a fresh interpreter; a variable given as None is unset."""
    variables = {**os.environ, **{k: v for k, v in environment.items() if v is not None}}
    for name in [k for k, v in environment.items() if v is None]:
        variables.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=variables, capture_output=True, text=True, timeout=120
    )


def output_of(code, **environment):
    done = run_python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PRINT_THREADS = "import fastsoftmax as fsm; print(fsm.get_num_threads())"


# ---- set_num_threads, get_num_threads, num_threads --------------------------------------


@needs_openmp
def test_set_and_get(threads):
    for n in (1, 2, 3, 7, np.int64(2), 1000):
        threads(n)
        assert fsm.get_num_threads() == n
        assert fsm.get_config()["threads"] == n
        fsm.softmax(LARGE)


@pytest.mark.parametrize("bad", [0, -1, -(2**40), 2**40])
def test_numbers_of_threads_that_cannot_be(bad, threads):
    threads(1)
    for function in (fsm.set_num_threads, fsm.num_threads):
        with pytest.raises(ValueError, match="threads"):
            function(bad)
    assert fsm.get_num_threads() == 1


@pytest.mark.parametrize("bad", [1.0, "2", None, [1]])
def test_numbers_of_threads_of_a_wrong_kind(bad, threads):
    for function in (fsm.set_num_threads, fsm.num_threads):
        with pytest.raises(TypeError, match="int"):
            function(bad)


def test_default(threads):
    """Without a setting, and that is how this test finds it."""
    assert fsm.get_num_threads() == (default_threads(os.environ.get("OMP_NUM_THREADS")) if OPENMP else 1)


@needs_openmp
def test_block(threads):
    threads(4)
    with fsm.num_threads(2):
        assert fsm.get_num_threads() == 2
        with fsm.num_threads(1):
            assert fsm.get_num_threads() == 1
            fsm.softmax(LARGE)
        assert fsm.get_num_threads() == 2
        with fsm.num_threads(3):  # limits further, never less
            assert fsm.get_num_threads() == 2
        threads(1)
        assert fsm.get_num_threads() == 1
        threads(5)
        assert fsm.get_num_threads() == 2
    assert fsm.get_num_threads() == 5
    with fsm.num_threads(9):
        assert fsm.get_num_threads() == 5


@needs_openmp
def test_block_ends_with_an_error(threads):
    threads(3)
    with pytest.raises(ZeroDivisionError), fsm.num_threads(1):
        raise ZeroDivisionError
    assert fsm.get_num_threads() == 3


@needs_openmp
def test_block_may_be_entered_again(threads):
    threads(3)
    block = fsm.num_threads(2)
    for _ in range(2):
        with block:
            assert fsm.get_num_threads() == 2
            with block:
                assert fsm.get_num_threads() == 2
            assert fsm.get_num_threads() == 2
        assert fsm.get_num_threads() == 3


@needs_openmp
def test_block_is_the_calling_threads_own(threads):
    threads(3)
    with fsm.num_threads(1), concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(fsm.get_num_threads).result() == 3
        assert fsm.get_num_threads() == 1

    def limited():
        with fsm.num_threads(2):
            return fsm.get_num_threads()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(limited).result() == 2
        assert pool.submit(fsm.get_num_threads).result() == 3
    assert fsm.get_num_threads() == 3


@needs_openmp
def test_block_may_be_shared_by_threads(threads):
    """Each goes back to the limit that it had itself, in whichever order they leave."""
    threads(5)
    shared = fsm.num_threads(3)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, fsm.num_threads(4):
        shared.__enter__()
        pool.submit(shared.__enter__).result()
        shared.__exit__(None, None, None)
        assert fsm.get_num_threads() == 4
        assert pool.submit(fsm.get_num_threads).result() == 3
        pool.submit(shared.__exit__, None, None, None).result()
        assert pool.submit(fsm.get_num_threads).result() == 5
    assert fsm.get_num_threads() == 5


@needs_openmp
def test_setting_holds_for_every_thread(threads):
    threads(3)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: fsm.get_num_threads(), range(4))) == [3] * 4
        pool.submit(fsm.set_num_threads, 2).result()
    assert fsm.get_num_threads() == 2


@needs_openmp
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_limits_hold_for_the_work_itself():
    """A process that may use one thread never starts another; one that may use three has three, then."""
    code = """
        import os
        import numpy as np
        import fastsoftmax as fsm
        count = lambda: len(os.listdir("/proc/self/task"))
        x = np.zeros((1000, 1000), np.float32)
        before = count()
        fsm.softmax(x[:3, :10])
        fsm.set_num_threads(1)
        fsm.softmax(x)
        fsm.set_num_threads(3)
        with fsm.num_threads(1):
            fsm.softmax(x)
        fsm.softmax(x[:3, :10])  # small work stays on the calling thread
        print(count() - before)
        fsm.softmax(x)
        print(count() - before)
    """
    assert output_of(code, OPENBLAS_NUM_THREADS="1").split() == ["0", "2"]


# ---- The environment --------------------------------------------------------------------


@needs_openmp
@pytest.mark.parametrize("value", ["1", "1,2", " 1 ", "64", "9" * 14, None])
def test_omp_num_threads(value):
    assert int(output_of(PRINT_THREADS, OMP_NUM_THREADS=value)) == default_threads(value)


@needs_openmp
def test_setting_overrides_the_environment():
    code = """
        import fastsoftmax as fsm
        fsm.set_num_threads(6)
        print(fsm.get_num_threads())
    """
    assert output_of(code, OMP_NUM_THREADS="1") == "6"


@needs_openmp
def test_omp_thread_limit_is_honoured():
    code = """
        import numpy as np
        import fastsoftmax as fsm
        fsm.set_num_threads(6)
        fsm.softmax(np.zeros((1000, 1000)))
        print(fsm.get_num_threads())
    """
    assert int(output_of(code, OMP_THREAD_LIMIT="1")) == 1


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity():
    """At import, and whenever it changes."""
    code = """
        import os
        first = min(os.sched_getaffinity(0))
        {early}
        import fastsoftmax as fsm
        {late}
        print(fsm.get_num_threads())
    """
    pin = "os.sched_setaffinity(0, {first})"
    assert output_of(code.replace("{early}", pin).replace("{late}", ""), OMP_NUM_THREADS=None) == "1"
    assert output_of(code.replace("{early}", "").replace("{late}", pin), OMP_NUM_THREADS=None) == "1"


@needs_openmp
def test_threadpoolctl(threads):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    openmp = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "openmp"]
    assert openmp, "threadpoolctl does not see the OpenMP runtime"
    threads(4)
    with threadpoolctl.threadpool_limits(1):
        assert fsm.get_num_threads() == 1
        fsm.softmax(LARGE)
    with threadpoolctl.threadpool_limits(3, user_api="openmp"):
        assert fsm.get_num_threads() == 3
        with fsm.num_threads(2):
            assert fsm.get_num_threads() == 2
    with threadpoolctl.threadpool_limits(9):
        assert fsm.get_num_threads() == 4
    assert fsm.get_num_threads() == 4


@needs_openmp
def test_threadpoolctl_limit_that_is_the_default(threads):
    """A limit of as many threads as there are processors is a limit all the same."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    threads(CPUS + 3)
    with threadpoolctl.threadpool_limits(CPUS):
        assert fsm.get_num_threads() == CPUS
    assert fsm.get_num_threads() == CPUS + 3


@needs_openmp
def test_setting_inside_a_block_of_threadpoolctl():
    """At its end it takes back the limit of the calling thread that the setting raised; the next setting holds."""
    pytest.importorskip("threadpoolctl")
    code = f"""
        import threadpoolctl
        import fastsoftmax as fsm
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            fsm.set_num_threads({CPUS + 2})
            print(fsm.get_num_threads())
        fsm.set_num_threads({CPUS + 3})
        print(fsm.get_num_threads())
        with threadpoolctl.threadpool_limits({CPUS}):
            print(fsm.get_num_threads())
    """
    assert output_of(code, OMP_NUM_THREADS=None).split() == [str(CPUS + 2), str(CPUS + 3), str(CPUS)]


@needs_openmp
@pytest.mark.parametrize("value", [None, "1", "2", str(CPUS + 7)])
def test_threadpoolctl_whatever_the_environment_says(value):
    pytest.importorskip("threadpoolctl")
    code = f"""
        import threadpoolctl
        import fastsoftmax as fsm
        fsm.set_num_threads({CPUS + 2})
        with threadpoolctl.threadpool_limits({CPUS + 1}):
            print(fsm.get_num_threads())
    """
    assert output_of(code, OMP_NUM_THREADS=value) == str(CPUS + 1)


# ---- Instruction sets by name -----------------------------------------------------------


@pytest.mark.parametrize("name", fsm.get_config()["isas"])
def test_instruction_set_by_name(name):
    code = "import fastsoftmax as fsm; print(fsm.get_config()['isa'], *fsm.softmax([0.0, 0.0]))"
    if _core.cpu_has(name):
        assert output_of(code, FASTSOFTMAX_ISA=name) == f"{name} 0.5 0.5"
    else:
        done = run_python(code, FASTSOFTMAX_ISA=name)
        assert done.returncode != 0
        assert "ImportError" in done.stderr


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx2 ", "neon", "avx512,avx2"])
def test_unknown_instruction_set(name):
    if name in fsm.get_config()["isas"]:
        pytest.skip(f"{name} is one here")
    done = run_python("import fastsoftmax", FASTSOFTMAX_ISA=name)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError")
    for valid in fsm.get_config()["isas"]:
        assert (valid in message) == bool(_core.cpu_has(valid))


def test_no_instruction_set_named():
    code = "import fastsoftmax as fsm; print(fsm.get_config()['isa'])"
    best = next(name for name in fsm.get_config()["isas"] if _core.cpu_has(name))
    assert output_of(code, FASTSOFTMAX_ISA=None) == best


def test_configuration(capsys):
    config = fsm.get_config()
    assert list(config) == ["version", "isa", "isas", "openmp", "threads"]
    assert config["version"] == fsm.__version__
    assert config["isa"] in config["isas"]
    assert "scalar" in config["isas"] or "neon" in config["isas"]
    assert config["threads"] == fsm.get_num_threads()
    assert fsm.show_config() is None
    shown = capsys.readouterr().out
    for value in (config["version"], config["isa"], *config["isas"], str(config["threads"])):
        assert value in shown


# ---- fork -------------------------------------------------------------------------------


def wait_for(child, seconds=30):
    """The exit status of a child, which is ended if it hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


FORK = """
    import os
    import sys
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point
    import numpy as np
    import fastsoftmax as fsm
    fsm.set_num_threads(3)
    x = np.random.default_rng(0).normal(size=(500, 1000)).astype("f4")
    labels = np.arange(500)
    calls = [
        lambda: fsm.softmax(x),
        lambda: fsm.log_softmax(x, 0),
        lambda: fsm.logsumexp(x, None),
        lambda: fsm.softmax_cross_entropy_grad(x, labels),
    ]
    expected = [call() for call in calls]  # the workers are started now
    def child():
        assert fsm.get_num_threads() == 1
        for call, result in zip(calls, expected):
            assert np.array_equal(call(), result)
        fsm.set_num_threads(2)
        with fsm.num_threads(1):
            fsm.softmax(x)
        fsm.softmax(x)
"""


@needs_fork
def test_child_of_a_fork_after_parallel_work():
    code = (
        FORK
        + """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            child()
            grandchild = os.fork()
            if grandchild == 0:
                child()
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(calls[0](), expected[0])  # the parent goes on as before
    assert fsm.get_num_threads() == (3 if fsm.get_config()["openmp"] else 1)
    print("done")
    """
    )
    assert output_of(code) == "done"


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_child_of_a_fork_of_this_process(threads):
    threads(2)
    expected = fsm.softmax(LARGE)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if np.array_equal(fsm.softmax(LARGE), expected) else 2
        finally:
            os._exit(status)
    assert wait_for(child) == 0


@needs_fork
def test_fork_while_another_thread_works():
    code = (
        FORK
        + """
    import threading
    stop = False
    def work():
        while not stop:
            fsm.softmax(x)
    worker = threading.Thread(target=work)
    worker.start()
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            fsm.softmax(x)
            fsm.logsumexp(x)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    stop = True
    worker.join()
    print("done")
    """
    )
    assert output_of(code) == "done"


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_multiprocessing_fork_pool(threads):
    threads(2)
    expected = fsm.logsumexp(LARGE)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = [pool.apply_async(fsm.logsumexp, (LARGE,)) for _ in range(6)]
        for result in results:
            np.testing.assert_array_equal(result.get(timeout=60), expected)


# ---- Many callers -----------------------------------------------------------------------


def test_concurrent_callers(threads):
    """The same and different arrays, large and small, with errors among them."""
    threads(2)
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=shape).astype(d) for shape in ((400, 300), (3, 5), (2, 100_000)) for d in ("f4", "f8")]
    expected = [(fsm.softmax(x), fsm.log_softmax(x, 0), fsm.logsumexp(x, None)) for x in arrays]

    def work(seed):
        order = np.random.default_rng(seed).permutation(len(arrays) * 5) % len(arrays)
        for i in order:
            x = arrays[i]
            got = fsm.softmax(x), fsm.log_softmax(x, 0), fsm.logsumexp(x, None)
            for a, b in zip(got, expected[i], strict=True):
                np.testing.assert_array_equal(a, b)
            with pytest.raises(IndexError):
                fsm.softmax_cross_entropy(x, np.full(len(x), -1))
            own = x.copy()
            fsm.softmax(own, out=own)
            np.testing.assert_array_equal(own, expected[i][0])

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))


def test_interpreter_lock_is_released(threads):
    """Another thread goes on while a long call works."""
    threads(1)
    x = np.broadcast_to(np.float32(1), (2**28,))
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    start = time.perf_counter()
    fsm.logsumexp(x)
    end = time.perf_counter()
    done.set()
    ticker.join()
    during = [t for t in ticks if start < t < end]
    # The call takes a tenth of a second or more; were the lock held, nothing would tick in its middle.
    middle = [t for t in during if start + 0.2 * (end - start) < t < start + 0.8 * (end - start)]
    assert len(middle) >= 3


def test_callers_at_interpreter_shutdown():
    """Daemon threads in the middle of a call when the interpreter ends."""
    code = """
        import threading
        import time
        import numpy as np
        import fastsoftmax as fsm
        x = np.zeros((500, 1000))
        def work():
            while True:
                fsm.softmax(x)
        for _ in range(2):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
        print("done")
    """
    assert output_of(code) == "done"


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or sys.platform == "win32", reason="needs POSIX signals")
def test_interrupt_leaves_a_usable_process():
    code = """
        import os
        import signal
        import threading
        import numpy as np
        import fastsoftmax as fsm
        # Where the suite runs in a shell's background SIGINT is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        x = np.broadcast_to(np.float32(1), (2**28,))
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            for _ in range(100):
                fsm.logsumexp(x)
            print("not interrupted")
        except KeyboardInterrupt:
            pass
        print(*fsm.softmax([0.0, 0.0]))
    """
    assert output_of(code) == "0.5 0.5"


@needs_openmp
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limits")
def test_threads_that_cannot_be_started():
    """The first call that may use several makes do with the calling thread alone."""
    code = """
        import os
        import resource
        import numpy as np
        import fastsoftmax as fsm
        x = np.random.default_rng(0).normal(size=(500, 1000))
        fsm.set_num_threads(1)
        expected = fsm.softmax(x)
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 24 * 2**20, hard))  # room for the result, not for 1000 stacks
        fsm.set_num_threads(1000)
        out = np.empty_like(x)
        before = len(os.listdir("/proc/self/task"))
        fsm.softmax(x, out=out)
        started = len(os.listdir("/proc/self/task")) - before
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        print(np.array_equal(out, expected), started)
    """
    assert output_of(code) == "True 0"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limits")
@needs_openmp
def test_threads_that_cannot_be_started_again():
    """A smaller team ends the threads that the larger one had, and they may not come back."""
    code = """
        import resource
        import numpy as np
        import fastsoftmax as fsm
        x = np.random.default_rng(0).normal(size=(500, 1000))
        out = np.empty_like(x)
        fsm.set_num_threads(200)
        expected = fsm.softmax(x)
        with fsm.num_threads(2):
            fsm.softmax(x, out=out)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 24 * 2**20, used + 24 * 2**20))
        out[...] = 0
        fsm.softmax(x, out=out)
        print(np.array_equal(out, expected))
    """
    assert output_of(code) == "True"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limits")
def test_no_memory():
    """MemoryError, with inputs and out as they were."""
    code = """
        import resource
        import numpy as np
        import fastsoftmax as fsm
        x = np.ones((1000, 2000))
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, used + 2**20))
        fsm.set_num_threads(1)
        for call in (lambda: fsm.softmax(x), lambda: fsm.log_softmax(x, 0), lambda: fsm.softmax(x, None)):
            try:
                call()
                print("no error")
            except MemoryError:
                pass
        print(x.min(), x.max())
        fsm.softmax(x, out=x)
        print(abs(x.min() * 2000 - 1) < 1e-15, abs(x.max() * 2000 - 1) < 1e-15)
    """
    assert output_of(code).split() == ["1.0", "1.0", "True", "True"]


# ---- Workers of other libraries -----------------------------------------------------------

needs_tasks = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")


@needs_openmp
@needs_tasks
def test_joblib_workers_keep_to_their_share():
    """loky gives each worker its share by the environment; the package is imported in the worker."""
    pytest.importorskip("joblib")
    code = """
        import os
        import joblib

        def work(seed):
            import numpy as np
            import fastsoftmax as fsm
            x = np.random.default_rng(seed).normal(size=(500, 1000))
            before = len(os.listdir("/proc/self/task"))
            total = fsm.softmax(x).sum()
            return fsm.get_num_threads(), len(os.listdir("/proc/self/task")) - before, round(float(total))

        for options in ({"inner_max_num_threads": 1}, {}):
            with joblib.parallel_config("loky", n_jobs=max(2, os.cpu_count()), **options):
                print(set(joblib.Parallel()(joblib.delayed(work)(seed) for seed in range(4))))
    """
    assert output_of(code, OMP_NUM_THREADS=None) == "{(1, 0, 500)}\n{(1, 0, 500)}"


@needs_openmp
def test_joblib_threads_keep_to_their_block(threads):
    joblib = pytest.importorskip("joblib")
    threads(4)

    def work(n):
        with fsm.num_threads(n):
            fsm.softmax(LARGE)
            return fsm.get_num_threads()

    with joblib.parallel_config("threading", n_jobs=3):
        assert joblib.Parallel()(joblib.delayed(work)(n) for n in (1, 2, 3, 1, 2, 3)) == [1, 2, 3, 1, 2, 3]


@needs_openmp
@needs_tasks
def test_process_pool_workers_keep_to_their_limit():
    code = """
        import concurrent.futures
        import multiprocessing
        import os
        import numpy as np
        import fastsoftmax as fsm

        def work(x):
            before = len(os.listdir("/proc/self/task"))
            total = fsm.softmax(x).sum()
            return fsm.get_num_threads(), len(os.listdir("/proc/self/task")) - before, round(float(total))

        if __name__ == "__main__":
            x = np.random.default_rng(0).normal(size=(500, 1000))
            fsm.set_num_threads(3)
            fsm.softmax(x)
            for method in multiprocessing.get_all_start_methods():
                context = multiprocessing.get_context(method)
                pool = concurrent.futures.ProcessPoolExecutor(2, context, fsm.set_num_threads, (1,))
                with pool:
                    print(method, set(pool.map(work, [x] * 4)))
    """
    with tempfile.TemporaryDirectory() as folder:  # a started worker imports the script anew
        script = Path(folder) / "script.py"
        script.write_text(textwrap.dedent(code))
        done = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", script], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    expected = [f"{method} {{(1, 0, 500)}}" for method in multiprocessing.get_all_start_methods()]
    assert done.stdout.splitlines() == expected


# ---- A container's CPU quota --------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 0), ("100000 100000", 1), ("150000 100000", 2), ("5000 100000", 1)]
)
def test_quota_of_cgroup_v2(quota, expected, tmp_path):
    """Rounded up; 0 stands for none."""
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "cpu.max").write_text(quota + "\n")
    (tmp_path / "process").write_text("0::/box\n")
    assert _threads._quota_threads(tmp_path, tmp_path / "process") == expected


def test_quota_of_an_outer_group(tmp_path):
    """The smallest of the groups above the process counts, and nothing above the mount."""
    inner = tmp_path / "mount" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("800000 100000\n")
    (inner.parent / "cpu.max").write_text("300000 100000\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "process").write_text("0::/outer/inner\n")
    assert _threads._quota_threads(tmp_path / "mount", tmp_path / "process") == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", 0), ("250000", 3)])
def test_quota_of_cgroup_v1(quota, expected, tmp_path):
    folder = tmp_path / "cpu" / "box"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota + "\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "process").write_text("5:memory:/other\n4:cpuacct,cpu:/box\n")
    assert _threads._quota_threads(tmp_path, tmp_path / "process") == expected


@pytest.mark.parametrize("quota", ["", "many 100000", "100000 0", "100000", "1 2 3"])
def test_quota_that_is_none(quota, tmp_path):
    """Files that hold something else, and a group whose path is no text."""
    (tmp_path / "cpu.max").write_text(quota)
    (tmp_path / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu.cfs_period_us").write_text("")
    (tmp_path / "process").write_bytes(b"0::/b\xff\x0cx\n")
    assert _threads._quota_threads(tmp_path, tmp_path / "process") == 0


def test_no_quota_without_control_groups(tmp_path):
    assert _threads._quota_threads(tmp_path, tmp_path / "missing") == 0
    (tmp_path / "process").write_text("0::/\n")
    assert _threads._quota_threads(tmp_path, tmp_path / "process") == 0


# ---- The interpreter's end ------------------------------------------------------------------


def test_calls_at_exit():
    """From atexit, and from an object that goes with its module."""
    code = """
        import atexit
        import numpy as np
        import fastsoftmax as fsm
        x = np.zeros((500, 1000), np.float32)

        class Last:
            def __init__(self):
                self.softmax, self.x = fsm.softmax, x
            def __del__(self):
                print(self.softmax(self.x)[0, 0] == np.float32(0.001), flush=True)

        last = Last()
        atexit.register(lambda: print(fsm.logsumexp(x).shape, flush=True))
        fsm.softmax(x)
    """
    assert output_of(code).split("\n") == ["(500,)", "True"]
