"""Memory: none is lost, however many calls succeed or fail; where there is none left, nothing has changed."""

import gc
import os
import sys

import cases
import numpy as np
import pytest
from test_threads import output_of

import fastsoftmax as fsm
from fastsoftmax import special

CALLS = 100_000 if os.environ.get("FASTSOFTMAX_LONG") else 600
WINDOWS = 4
ROWS = cases.make_rows(5, 7, np.float32)
X, LABELS = ROWS.x, ROWS.labels
READ_ONLY = X.copy()
READ_ONLY.flags.writeable = False

CALLS_OF_EVERYTHING = {
    **{name: lambda case=case: case(fsm, ROWS) for name, case in cases.CASES.items()},
    "jacobian": lambda: fsm.softmax_jacobian(X),
    "special.softmax": lambda: special.softmax(X),
    "special.log_softmax": lambda: special.log_softmax(X, axis=1),
    "special.logsumexp": lambda: special.logsumexp(X, b=ROWS.b, return_sign=True),
    "out": lambda: fsm.softmax(X, out=np.empty_like(X)),
    "out of another dtype": lambda: fsm.softmax(X, out=np.empty(X.shape)),
    "several axes": lambda: fsm.log_softmax(X, (0, 1)),
    "integers": lambda: fsm.softmax(LABELS),
    "byte order": lambda: fsm.logsumexp(X.astype(">f4")),
    "strides": lambda: fsm.softmax(X[::-1, ::2]),
    "scratch memory": lambda: fsm.log_softmax(np.zeros((3, 6000)), out=np.empty((3, 6000))),
    "a block of threads": lambda: fsm.num_threads(1).__enter__(),
    "configuration": fsm.get_config,
}


def failing(error, call):
    """The call, which must raise this error."""

    def attempt():
        with pytest.raises(error):
            call()

    return attempt


BAD_LABELS = LABELS + 100
FAILING = {
    "complex": (TypeError, lambda: fsm.softmax(X + 0j)),
    "object": (TypeError, lambda: fsm.logsumexp(X.astype(object))),
    "text": (TypeError, lambda: fsm.log_softmax("text")),
    "masked array": (TypeError, lambda: fsm.softmax(np.ma.masked_array(X))),
    "bad axis": (ValueError, lambda: fsm.softmax(X, 2)),
    "axis of a wrong kind": (TypeError, lambda: fsm.softmax(X, 0.5)),
    "axis given twice": (ValueError, lambda: fsm.logsumexp(X, (0, 0))),
    "temperature of 0": (ValueError, lambda: fsm.softmax(X, temperature=0)),
    "temperature of a wrong shape": (ValueError, lambda: fsm.log_softmax(X, temperature=[1.0, 2.0])),
    "mask of a wrong dtype": (TypeError, lambda: fsm.softmax(X, where=X)),
    "mask of a wrong shape": (ValueError, lambda: fsm.softmax(X, where=[True, False])),
    "b of a wrong shape": (ValueError, lambda: fsm.logsumexp(X, b=[1.0, 2.0])),
    "b of a wrong dtype": (TypeError, lambda: fsm.logsumexp(X, b=1j)),
    "out of a wrong kind": (TypeError, lambda: fsm.softmax(X, out=[0.0])),
    "out of a wrong dtype": (TypeError, lambda: fsm.softmax(X, out=np.empty(X.shape, int))),
    "out of a wrong shape": (ValueError, lambda: fsm.logsumexp(X, out=np.empty(9, X.dtype))),
    "read-only out": (ValueError, lambda: fsm.softmax(X, out=READ_ONLY)),
    "unknown option": (TypeError, lambda: fsm.softmax(X, tau=1)),
    "labels out of range": (IndexError, lambda: fsm.softmax_cross_entropy(X, BAD_LABELS)),
    "labels out of range, gradient": (IndexError, lambda: fsm.softmax_cross_entropy_grad(X, BAD_LABELS)),
    "labels out of range, both": (IndexError, lambda: fsm.softmax_cross_entropy_value_and_grad(X, BAD_LABELS)),
    "labels out of range, grad_hess": (IndexError, lambda: fsm.softmax_cross_entropy_grad_hess(X, BAD_LABELS)),
    "labels of a wrong dtype": (TypeError, lambda: fsm.softmax_cross_entropy(X, LABELS + 0.5)),
    "labels of a wrong shape": (ValueError, lambda: fsm.softmax_cross_entropy(X, LABELS[1:])),
    "class weights of a wrong shape": (ValueError, lambda: fsm.softmax_cross_entropy(X, LABELS, weight=[1.0])),
    "sample weights of a wrong shape": (ValueError, lambda: fsm.softmax_cross_entropy(X, LABELS, sample_weight=[1.0])),
    "smoothing above 1": (ValueError, lambda: fsm.softmax_cross_entropy(X, LABELS, label_smoothing=2)),
    "unknown reduction": (ValueError, lambda: fsm.softmax_cross_entropy(X, LABELS, reduction="max")),
    "ignored probabilities": (ValueError, lambda: fsm.softmax_cross_entropy(X, ROWS.probabilities, ignore_index=0)),
    "grad_loss of a wrong shape": (ValueError, lambda: fsm.softmax_cross_entropy_grad(X, LABELS, grad_loss=[1.0])),
    "two outs that are one": (
        ValueError,
        lambda: fsm.softmax_cross_entropy_grad_hess(X, LABELS, grad_out=ROWS.g, hess_out=ROWS.g),
    ),
    "negative factor": (ValueError, lambda: fsm.softmax_cross_entropy_grad_hess(X, LABELS, factor=-1.0)),
    "index out of range": (IndexError, lambda: fsm.selected_log_softmax(X, BAD_LABELS)),
    "index of a wrong dtype": (TypeError, lambda: fsm.selected_log_softmax(X, LABELS + 0.5)),
    "index of a wrong shape": (ValueError, lambda: fsm.selected_log_softmax(X, LABELS[1:])),
    "gradient of a wrong shape": (ValueError, lambda: fsm.softmax_vjp(X, X[1:])),
    "gradient of a wrong dtype": (TypeError, lambda: fsm.log_softmax_vjp(X, X + 0j)),
    "jacobian of a scalar": (ValueError, lambda: fsm.softmax_jacobian(1.0)),
    "no number of threads": (ValueError, lambda: fsm.set_num_threads(0)),
}


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def growth(call):
    """Blocks of Python's allocator, and the process's bytes, that some calls leave behind."""
    gc.collect()
    blocks, resident = sys.getallocatedblocks(), resident_bytes()
    for _ in range(CALLS // WINDOWS):
        call()
    gc.collect()
    return sys.getallocatedblocks() - blocks, resident_bytes() - resident


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", [*CALLS_OF_EVERYTHING, *FAILING])
def test_no_growth(name):
    """Caches fill up in one window or another; a leak shows in all of them."""
    call = CALLS_OF_EVERYTHING[name] if name in CALLS_OF_EVERYTHING else failing(*FAILING[name])
    gc.freeze()  # so that collecting what the calls leave takes no time
    try:
        with fsm.num_threads(1):
            blocks, resident = np.min([growth(call) for _ in range(WINDOWS)], axis=0)
    finally:
        gc.unfreeze()
    assert blocks < CALLS // WINDOWS // 2  # less than an object in two calls
    assert resident < 2**20  # the smallest scratch memory is 20 KiB, the smallest array of many calls 64 bytes


# ---- Where the address space ends ---------------------------------------------------------

# Large blocks go back to the system when they are freed, so that the limit leaves no others to take.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}

EXHAUSTED = """
    import resource
    import sys
    import zlib
    import numpy as np
    sys.path.insert(0, {tests!r})
    import cases
    import fastsoftmax as fsm

    ROOM = 2**20
    ARGUMENTS = ("x", "b", "g", "probabilities", "mask", "labels", "index", "weight", "temperature")
    calls = {{**cases.CASES, "jacobian": lambda f, r: f.softmax_jacobian(r.x)}}
    fsm.set_num_threads(1)
    rows = cases.make_rows(1000, 500, np.float64)
    before = {{name: zlib.crc32(getattr(rows, name)) for name in ARGUMENTS}}
    shapes = cases.make_rows(4, 10, np.float64)

    def allocates(name):
        # Results of the shape of x, 4 MB here, and what is converted on the way.
        results = calls[name](fsm, shapes)
        results = results if isinstance(results, tuple) else (results,)
        return any(np.size(result) >= shapes.x.size for result in results)

    large = [name for name in calls if allocates(name)]
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    failed = []
    for name, call in calls.items():
        try:
            call(fsm, rows)
        except MemoryError:
            failed.append(name)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    after = {{name: zlib.crc32(getattr(rows, name)) for name in ARGUMENTS}}
    assert before == after, "an argument has changed"
    assert len(large) > 30, large
    assert set(large) <= set(failed), f"no MemoryError: {{set(large) - set(failed)}}"
    again = fsm.softmax(rows.x)
    assert abs(again.sum() / 1000 - 1) < 1e-12
    print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limits")
def test_every_function_without_memory():
    """MemoryError from each whose result does not fit; all arguments as they were, and calls work again after."""
    assert output_of(EXHAUSTED.format(tests=os.path.dirname(__file__)), **RETURN_MEMORY) == "done"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limits")
@pytest.mark.parametrize("room", [0, 2**16, 2**18, 2**20, 2**22])
def test_no_memory_for_scratch(room):
    """In place, so that the kernels' own memory alone is wanting: an error and x as it was, or the right answer."""
    code = f"""
        import resource
        import zlib
        import numpy as np
        import fastsoftmax as fsm
        fsm.set_num_threads(1)
        x = np.random.default_rng(0).normal(size=(4000, 500))
        expected = fsm.softmax(x.T.copy()).T
        given = x.copy()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + {room}, hard))
        try:
            fsm.softmax(x, 0, out=x)
            wanted = expected
        except MemoryError:
            wanted = given
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        print(np.array_equal(x, wanted))
    """
    assert output_of(code, **RETURN_MEMORY) == "True"


# ---- Sizes beyond all memory ----------------------------------------------------------------


def huge(*shape, dtype=np.float32):
    """A view of one element."""
    return np.broadcast_to(dtype(1), shape)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fsm.softmax(huge(2**60)),
        lambda: fsm.log_softmax(huge(2**30, 2**30)),
        lambda: fsm.softmax(huge(2**62, dtype=np.int8)),  # as float64 more bytes than a ptrdiff_t counts
        lambda: fsm.logsumexp(huge(2**61, dtype=np.bool_)),
        lambda: fsm.logsumexp(huge(2**30, 2, 2**29, dtype=np.float64), (0, 2), b=huge(2**30, 1, 1)),
        lambda: fsm.softmax_vjp(huge(2**60), huge(2**60)),
        lambda: fsm.softmax_jacobian(huge(2**33)),  # the square of its length overflows
        lambda: fsm.softmax_jacobian(huge(2**20, 2**20)),
        lambda: fsm.selected_log_softmax(huge(2**60, 1), huge(2**60, dtype=np.int8)),
        lambda: fsm.selected_log_softmax(huge(2**31, 1, 2), huge(1, 2**31, 1, dtype=np.int8)),
    ],
)
def test_sizes_beyond_memory(call):
    """An error at once: MemoryError, or ValueError where the product of sizes is no size at all."""
    with pytest.raises((MemoryError, ValueError)):
        call()
