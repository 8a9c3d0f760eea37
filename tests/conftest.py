"""What every test file shares: instruction sets to run on, memory layouts, and what was not exercised."""

import numpy as np
import oracle
import pytest
from hypothesis import settings

import fastsoftmax as fsm
from fastsoftmax import _core

# The same examples every time: a failure is the change's, never the draw's.
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("suite")

CONFIG = fsm.get_config()


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes longer than ten seconds")
    for name in ("array_api_backends", "skip_xp_backends", "xfail_xp_backends"):
        config.addinivalue_line("markers", f"{name}: SciPy's own, on the tests that test_peers.py borrows from it")


def pytest_report_header():
    missing = [name for name in CONFIG["isas"] if not _core.cpu_has(name)]
    return [
        f"fastsoftmax {CONFIG['version']}, OpenMP: {CONFIG['openmp']}, threads: {CONFIG['threads']}",
        f"instruction sets compiled: {', '.join(CONFIG['isas'])}; not exercised: {', '.join(missing) or 'none'}",
    ]


@pytest.fixture(params=CONFIG["isas"])
def isa(request):
    """The test runs once on each compiled instruction set that this CPU has."""
    if not _core.cpu_has(request.param):
        pytest.skip(f"this CPU has no {request.param}")
    assert _core.choose_instruction_set(request.param)
    yield request.param
    _core.choose_instruction_set(CONFIG["isa"])


@pytest.fixture
def threads():
    """A function that sets the number of threads for the test."""
    yield fsm.set_num_threads
    _core.request_threads(0)  # as if it had never been called


@pytest.fixture
def exact_values(dtype):
    """For tests that measure results of `dtype` against the oracle."""
    if dtype == np.float64 and not oracle.WIDE_ENOUGH:
        pytest.skip("long double is no wider than double here")


# ---- The same values, laid out in memory in other ways ----------------------------------


def _fortran(values):
    return np.asfortranarray(values)


def _negative(values):
    return np.flip(np.flip(values).copy())


def _every_second(values):
    room = np.full([2 * size for size in values.shape], 77).astype(values.dtype)
    view = room[tuple(slice(None, None, 2) for _ in values.shape)]
    view[...] = values
    return view


def _spaced_rows(values):
    """Rows that are contiguous, some way apart."""
    room = np.full((*values.shape[:-1], values.shape[-1] + 5), 77).astype(values.dtype)
    room[..., 2:-3] = values
    return room[..., 2:-3]


def _misaligned(values):
    room = np.empty(values.nbytes + 1, np.uint8)[1:]
    view = room.view(values.dtype).reshape(values.shape)
    view[...] = values
    assert view.size == 0 or not view.flags.aligned or values.dtype.alignment == 1
    return view


def _swapped(values):
    return values.astype(values.dtype.newbyteorder())


def _read_only(values):
    view = values.copy()
    view.flags.writeable = False
    return view


def _transposed(values):
    """An N-D array whose axes lie in memory in an order that is neither C's nor Fortran's."""
    order = np.roll(np.arange(values.ndim), 1)
    return np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))


def _odd_address(values):
    """Contiguous, aligned to an element and to nothing more."""
    room = np.empty(values.size + 1, values.dtype)
    room[1:] = values.ravel()
    return room[1:].reshape(values.shape)


LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": _fortran,
    "negative strides": _negative,
    "every second": _every_second,
    "spaced rows": _spaced_rows,
    "odd address": _odd_address,
    "misaligned": _misaligned,
    "byte-swapped": _swapped,
    "read-only": _read_only,
    "transposed": _transposed,
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    """A function that lays an array's values out in another way."""
    return LAYOUTS[request.param]


@pytest.fixture
def layouts():
    """All of them, by name."""
    return LAYOUTS
