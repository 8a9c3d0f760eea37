"""The same bytes: for any number of threads, batch, position, layout, instruction set, caller, and in place."""

import threading

import cases
import numpy as np
import pytest

import fastsoftmax as fsm
from fastsoftmax import _core

LENGTHS = range(1, 131)
LONG_LENGTHS = [131, 160, 255, 256, 257, 500, 1000, 1024, 2047, 4097, 10_000, 40_001]

# Elements that are more than enough for a call to use its threads.
PARALLEL = 100_000


def assert_same_bytes(got, expected, note=""):
    """The sign and payload of NaN aside."""
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype, note
        assert a.shape == b.shape, note
        a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
        if a.tobytes() == b.tobytes():
            continue
        bits = f"u{a.dtype.itemsize}"
        same = (a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))
        assert np.all(same), (note, np.argwhere(~np.atleast_1d(same))[:3])


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param


@pytest.fixture(params=cases.CASES)
def case(request):
    return request.param


@pytest.fixture
def best_isa():
    """The one the others are compared with."""
    yield fsm.get_config()["isa"]
    _core.choose_instruction_set(fsm.get_config()["isa"])


def test_instruction_sets(case, dtype, best_isa):
    others = [name for name in fsm.get_config()["isas"] if _core.cpu_has(name) and name != best_isa]
    if not others:
        pytest.skip("this CPU has one instruction set alone")
    for n in [*LENGTHS, *LONG_LENGTHS]:
        rows = cases.make_rows(19 if n <= 1000 else 3, n, dtype, special=True)
        _core.choose_instruction_set(best_isa)
        expected = cases.results(case, fsm, rows)
        for name in others:
            _core.choose_instruction_set(name)
            assert_same_bytes(cases.results(case, fsm, rows), expected, (name, n))


def test_instruction_sets_on_columns(dtype, best_isa):
    others = [name for name in fsm.get_config()["isas"] if _core.cpu_has(name) and name != best_isa]
    if not others:
        pytest.skip("this CPU has one instruction set alone")
    for n in (1, 2, 5, 17, 33, 100, 1000, 5000, 17_000):
        for columns in (1, 2, 3, 4, 8, 31, 64, 100):
            x = cases.make_rows(columns, n, dtype, special=columns > 3).x.T.copy()
            labels = np.arange(columns) % n
            calls = [
                lambda x=x: fsm.softmax(x, 0),
                lambda x=x: fsm.log_softmax(x, 0),
                lambda x=x: fsm.logsumexp(x, 0),
                lambda x=x, labels=labels: fsm.softmax_cross_entropy_grad(x, labels, 0),
            ]
            _core.choose_instruction_set(best_isa)
            expected = [call() for call in calls]
            for name in others:
                _core.choose_instruction_set(name)
                assert_same_bytes([call() for call in calls], expected, (name, n, columns))


def test_threads(case, dtype, threads):
    # A few lengths here; `test_threads_at_every_length` has all of them.
    for n in (1, 3, 10, 32, 100, 1000, 4097, PARALLEL + 3):
        rows = cases.make_rows(max(1, PARALLEL // n), n, dtype, special=True)
        threads(1)
        expected = cases.results(case, fsm, rows)
        for count in range(2, 6):
            threads(count)
            assert_same_bytes(cases.results(case, fsm, rows), expected, (n, count))


@pytest.mark.usefixtures("isa")
def test_threads_on_every_instruction_set(dtype, threads):
    for case in ("softmax", "logsumexp, b", "selected", "loss mean, indices, smoothing, z-loss"):
        for n in (3, 40, 1000, PARALLEL + 3):
            rows = cases.make_rows(max(1, PARALLEL // n), n, dtype, special=True)
            threads(1)
            expected = cases.results(case, fsm, rows)
            for count in range(2, 6):
                threads(count)
                assert_same_bytes(cases.results(case, fsm, rows), expected, (case, n, count))


EVERY_LENGTH_CASES = [
    "softmax",
    "log_softmax",
    "logsumexp",
    "logsumexp, b",
    "softmax_vjp",
    "log_softmax_vjp",
    "selected",
    "grad_hess",
    "loss sum, indices, ",
    "loss mean, probabilities, smoothing, z-loss",
]


@pytest.mark.parametrize("first", range(1, 131, 26))
def test_threads_at_every_length(first, dtype, threads):
    for n in range(first, first + 26):
        rows = cases.make_rows.__wrapped__(PARALLEL // n, n, dtype)  # too large to be kept
        for case in EVERY_LENGTH_CASES:
            threads(1)
            expected = cases.results(case, fsm, rows)
            for count in (2, 3, 5):
                threads(count)
                assert_same_bytes(cases.results(case, fsm, rows), expected, (case, n, count))


def test_more_threads_than_runs_of_work(dtype, threads):
    """parallel.c cuts the work into 64 runs at most; other threads only help."""
    for n in (10, 1000, PARALLEL + 3):
        rows = cases.make_rows(max(1, PARALLEL // n), n, dtype)
        for case in ("softmax", "logsumexp", "loss sum, indices, "):
            threads(1)
            expected = cases.results(case, fsm, rows)
            threads(100)
            assert_same_bytes(cases.results(case, fsm, rows), expected, (case, n))


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [65_536, 100_003, 524_289])
def test_threads_on_few_long_rows(rows, n, dtype, threads):
    """Rows are cut into blocks; alone or beside others, on one thread or five."""
    data = cases.make_rows(rows, n, dtype)
    for case in ("softmax", "log_softmax", "logsumexp", "logsumexp, b", "selected", "loss sum, indices, "):
        threads(1)
        expected = cases.results(case, fsm, data)
        for count in range(2, 6):
            threads(count)
            assert_same_bytes(cases.results(case, fsm, data), expected, (case, count))


@pytest.mark.parametrize("case", cases.ROW_CASES)
def test_position_and_batch(case, dtype, isa):
    """Each row alone gives what it gives among others, wherever it stands."""
    lengths = [*LENGTHS, *LONG_LENGTHS]
    if isa != fsm.get_config()["isa"]:
        lengths = lengths[::5]  # test_instruction_sets has them all
    for n in lengths:
        count = 19 if n < 100 else 4
        rows = cases.make_rows(count, n, dtype, special=True)
        together = cases.results(case, fsm, rows)
        for i in {0, 1, count // 2, count - 1}:
            alone = cases.results(case, fsm, rows.map(lambda a, i=i: a[i : i + 1].copy()))
            assert_same_bytes(alone, [a[i : i + 1] for a in together], (n, i))
        turned = cases.results(case, fsm, rows.map(lambda a: a[::-1].copy()))
        assert_same_bytes([a[::-1] for a in turned], together, n)
        fewer = cases.results(case, fsm, rows.map(lambda a, count=count: a[1 : count - 1].copy()))
        assert_same_bytes(fewer, [a[1 : count - 1] for a in together], n)


def test_layout(case, dtype, layout):
    """C, Fortran, negative strides, gaps, misaligned, byte-swapped, read-only."""
    for n in [1, 2, 3, 5, 8, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 130, 1000, 4097]:
        rows = cases.make_rows(19 if n <= 1000 else 3, n, dtype, special=True)
        expected = cases.results(case, fsm, rows)
        assert_same_bytes(cases.results(case, fsm, rows.map(layout)), expected, n)


@pytest.mark.usefixtures("isa")
def test_layout_at_every_length(dtype, layouts):
    for n in [*LENGTHS, *LONG_LENGTHS]:
        x = cases.make_rows(18 if n < 200 else 3, n, dtype, special=True).x
        expected = fsm.softmax(x), fsm.log_softmax(x), fsm.logsumexp(x)
        for name, lay_out in layouts.items():
            y = lay_out(x)
            assert_same_bytes((fsm.softmax(y), fsm.log_softmax(y), fsm.logsumexp(y)), expected, (n, name))


PANELS = {
    "wide": (3, 1500),
    "wide, tiles of lines": (21, 1100),
    "the last group not whole": (60, 524),
    "across the outer axis": (5, 9, 44),
    "narrow, two runs a group": (40, 9, 8),
    "narrow, many runs a group": (40, 9, 5),
    "two outer axes": (2, 3, 50, 40),
    "more rows than a panel's lines": (1200, 530),
    "past the caches": (70, 64_003),
    "past the caches, aligned lines": (70, 64_000),
    "past the caches, aligned lines in each part": (3, 21, 70_400),
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", PANELS.values(), ids=PANELS)
@pytest.mark.parametrize("first", [0, 1, 4, 13])
def test_panels(dtype, shape, first):
    """Neighbouring columns, read and written together, from any place in a line of the cache on."""
    rng = np.random.default_rng(first)
    memory = np.zeros((2, np.prod(shape) + 80), dtype)
    starts = [-(line.ctypes.data // line.itemsize) % (64 // line.itemsize) + first for line in memory]
    x, out = (line[at : at + np.prod(shape)].reshape(shape) for line, at in zip(memory, starts, strict=True))
    x[...] = rng.standard_normal(shape) * 5
    x[..., 2] -= 400
    x[..., 0, 3] += 100
    x[..., 0, 4] = -np.inf
    axis = len(shape) - 2
    rows = np.moveaxis(x, axis, -1).copy()
    for function in (
        fsm.softmax,
        fsm.log_softmax,
        lambda *args, **given: fsm.log_softmax(*args, temperature=2, **given),
    ):
        expected = function(rows, -1)
        function(x, axis, out=out)
        assert_same_bytes([np.moveaxis(out, axis, -1)], [expected], "in C order")
        into_rows = np.zeros_like(rows)
        function(np.moveaxis(x, axis, -1), -1, out=into_rows)
        assert_same_bytes([into_rows], [expected], "from columns to rows")
    assert_same_bytes([fsm.logsumexp(x, axis)], [fsm.logsumexp(rows, -1)], "logsumexp")
    assert not memory[1, : starts[1]].any()
    assert not memory[1, starts[1] + out.size :].any()


def test_columns(dtype):
    """Rows that lie across memory, any number of them beside each other."""
    for n in [*LENGTHS, *LONG_LENGTHS[:-2], 17_000]:
        for columns in (1, 7, 40) if n <= 1000 else (9,):
            rows = cases.make_rows(columns, n, dtype, special=columns > 3)
            x, g, labels = rows.x, rows.g, rows.labels
            across, g_across = np.ascontiguousarray(x.T), np.ascontiguousarray(g.T)
            got = (
                fsm.softmax(across, 0).T,
                fsm.log_softmax(across, 0).T,
                fsm.logsumexp(across, 0),
                fsm.softmax_vjp(across, g_across, 0).T,
                fsm.log_softmax_vjp(across, g_across, 0).T,
                fsm.softmax_cross_entropy_grad(across, labels, 0).T,
                fsm.softmax_cross_entropy(across, labels, 0),
                fsm.selected_log_softmax(across, labels, 0),
            )
            expected = (
                fsm.softmax(x),
                fsm.log_softmax(x),
                fsm.logsumexp(x),
                fsm.softmax_vjp(x, g),
                fsm.log_softmax_vjp(x, g),
                fsm.softmax_cross_entropy_grad(x, labels),
                fsm.softmax_cross_entropy(x, labels),
                fsm.selected_log_softmax(x, labels),
            )
            assert_same_bytes(got, expected, (n, columns))


@pytest.mark.parametrize("hop", [1, 2, 3, 5, 8, 9])
def test_overlapping_windows_beside_columns(hop, dtype):
    """Rows that overlap, as long as a whole block and `hop` more: a part of them looks like rows without gaps."""
    n = 4096 + hop
    generator = np.random.default_rng(hop)
    windows = np.lib.stride_tricks.sliding_window_view(generator.random(32 * hop + n).astype(dtype), n)[::hop]
    columns = np.asfortranarray(generator.random((len(windows), n)).astype(dtype))
    got, expected = fsm.softmax_vjp(columns, windows), fsm.softmax_vjp(columns, windows.copy())
    assert_same_bytes([got], [expected], hop)


def test_alignment(dtype):
    """Every offset of a row from a cache line's start."""
    for n in (1, 7, 16, 33, 100, 1000):
        x = cases.make_rows(3, n, dtype).x
        expected = fsm.softmax(x)
        for offset in range(17):
            room = np.empty(x.size + 17, dtype)
            view = room[offset : offset + x.size].reshape(x.shape)
            view[...] = x
            assert_same_bytes([fsm.softmax(view), fsm.softmax(view, out=view)], [expected, expected], (n, offset))


@pytest.mark.usefixtures("isa")
def test_one_certain_row_in_place(dtype):
    """The maximum is kept out of the sum, though the row's memory is written over meanwhile."""
    for n in LENGTHS:
        x = np.zeros((1, n), dtype)
        x[0, n // 2] = 50
        expected = fsm.softmax_cross_entropy_value_and_grad(x, [n // 2], reduction="none")
        for y in (x.copy(), np.repeat(x, 3, axis=1)[:, ::3]):
            loss, gradient = fsm.softmax_cross_entropy_value_and_grad(y, [n // 2], reduction="none", out=y)
            assert_same_bytes([loss, gradient], expected, n)


@pytest.mark.parametrize("alone", [False, True])
def test_in_place(dtype, alone):
    for n in [*LENGTHS, *LONG_LENGTHS]:
        rows = cases.make_rows(18 if n < 200 else 3, n, dtype, special=True)
        if alone:
            rows = rows.map(lambda a: a[:1].copy())
        x, g, labels = rows.x, rows.g, rows.labels
        for function in (
            lambda x, out: fsm.softmax(x, out=out),
            lambda x, out: fsm.log_softmax(x, out=out),
            lambda x, out, g=g: fsm.softmax_vjp(x, g, out=out),
            lambda x, out, g=g: fsm.log_softmax_vjp(x, g, out=out),
            lambda x, out, labels=labels: fsm.softmax_cross_entropy_grad(x, labels, out=out),
            lambda x, out, labels=labels: fsm.softmax_cross_entropy_value_and_grad(x, labels, out=out)[1],
            lambda x, out, p=rows.probabilities: fsm.softmax_cross_entropy_grad(x, p, out=out),
        ):
            expected = function(x, None)
            y = x.copy()
            assert function(y, y) is y
            assert_same_bytes([y], [expected], n)


def test_streamed_output_has_the_same_bytes(dtype):
    """An output beyond the caches, in fresh memory or in place, and the same rows in a small one."""
    for n in (100, 1000, 1003, 5000, 50_000):  # rows of 1000 and 1003 share lines of memory with their neighbours
        few = cases.make_rows(20, n, dtype)
        copies = 40_000_000 // (20 * n * few.x.itemsize)
        many = few.map(lambda a, copies=copies: np.tile(a, (copies, *[1] * (a.ndim - 1))))
        for case in ("softmax", "log_softmax", "gradient none alone", "loss none, probabilities, "):
            expected = cases.results(case, fsm, few)
            got = cases.results(case, fsm, many)
            first, last = [a[:20] for a in got], [a[-20:] for a in got]
            assert_same_bytes(first, expected, (case, n))
            assert_same_bytes(last, expected, (case, n))
        in_place = many.x.copy()
        fsm.softmax(in_place, out=in_place)
        assert_same_bytes([in_place[-20:]], [fsm.softmax(few.x)], n)


def test_calling_thread(dtype):
    """The main thread, another, and several at once."""
    data = [cases.make_rows(200_000 // n, n, dtype) for n in (3, 40, 1000)]
    chosen = ["softmax", "logsumexp", "loss mean, indices, smoothing, z-loss", "grad_hess"]
    expected = [cases.results(case, fsm, rows) for case in chosen for rows in data]
    failures = []

    def work():
        try:
            for _ in range(3):
                got = [cases.results(case, fsm, rows) for case in chosen for rows in data]
                for a, b in zip(got, expected, strict=True):
                    assert_same_bytes(a, b)
        except AssertionError as error:
            failures.append(error)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


def test_sums_do_not_depend_on_layout_or_gradient(dtype):
    """The loss alone, with its gradient, of columns: one order of adding up."""
    for count, n in ((50_000, 3), (3000, 40), (300, 1000), (4, 70_000)):
        rows = cases.make_rows(count, n, dtype)
        for reduction in ("sum", "mean"):
            loss = fsm.softmax_cross_entropy(rows.x, rows.labels, reduction=reduction)
            for got in (
                fsm.softmax_cross_entropy_value_and_grad(rows.x, rows.labels, reduction=reduction)[0],
                fsm.softmax_cross_entropy(np.asfortranarray(rows.x), rows.labels, reduction=reduction),
                fsm.softmax_cross_entropy(np.ascontiguousarray(rows.x.T), rows.labels, 0, reduction=reduction),
            ):
                assert_same_bytes([got], [loss], (count, n, reduction))


@pytest.mark.parametrize("count", [32, 133])
@pytest.mark.parametrize(
    "n", [64, 65, 127, 128, 131, 160, 191, 192, 200, 223, 224, 255, 256, 319, 320, 383, 384, 511, 512]
)
def test_rows_transposed_or_not(isa, dtype, n, count):
    """Many rows of middling length are transposed, few are not: the same rows, all at once and three by three."""
    rows = cases.make_rows(count, n, dtype, special=True)

    def results(part):
        x, labels = rows.x[part], rows.labels[part]
        loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, labels, reduction="none")
        alone = fsm.softmax_cross_entropy(x, labels, reduction="none")
        chosen = fsm.selected_log_softmax(x, labels)
        return fsm.softmax(x), fsm.log_softmax(x), fsm.logsumexp(x), loss, gradient, alone, chosen

    parts = [results(slice(first, first + 3)) for first in range(0, count, 3)]
    assert_same_bytes(results(slice(None)), [np.concatenate(pieces) for pieces in zip(*parts, strict=True)], isa)


def make_groups_that_differ(n, dtype):
    """So many rows that groups of them overlap, each group with rows of its own kind."""
    x = cases.make_rows(10 if n > 4096 else 75, n, dtype).x
    kinds = x[:: len(x) // 9]
    kinds[:6, n // 2] = [50, np.nan, -3e38, 1e4, np.inf, -200]
    kinds[6] = -np.inf
    kinds[7] *= 100
    kinds[8] -= 1000
    labels = np.random.default_rng(n).integers(0, n, len(x))
    labels[:6] = [0, n - 1, n - 2, 15, min(4095, n - 1), min(4096, n - 1)]  # at the ends of vectors and blocks
    labels[-3:] = -100
    return x, labels


def make_columns_that_differ(n, count, dtype):
    """The columns as rows, each kind alone among plain ones."""
    rng = np.random.default_rng(n)
    x = (4 * rng.standard_normal((count, n))).astype(dtype)
    for row, value in zip(
        range(7, count, count // 40 + 1), [50, np.nan, -3e38, 1e4, np.inf, -200, -np.inf] * 5, strict=False
    ):
        x[row, rng.integers(n)] = value
    x[count // 3] = -np.inf
    x[count // 2] -= 1000
    labels = rng.integers(0, n, count)
    labels[::11] = -100
    return x, labels


def results_of_columns(x, labels, weights, places, axis):
    options = {"axis": axis, "reduction": "none", "ignore_index": -100}
    return [
        fsm.softmax(x, axis, out=places[0]),
        fsm.log_softmax(x, axis, out=places[1]),
        fsm.logsumexp(x, axis),
        fsm.softmax_cross_entropy(x, labels, **options),
        *fsm.softmax_cross_entropy_value_and_grad(x, labels, out=places[2], **options),
        fsm.softmax_cross_entropy_grad(x, labels, out=places[3], **options),
        fsm.softmax_cross_entropy_grad(x, labels, sample_weight=weights, **options),
    ]


def summed_losses_of_columns(x, labels, axis):
    """The sum of the finite columns' losses, that of their losses with a gradient, and all the columns' gradient."""
    options = {"axis": axis, "reduction": "sum", "ignore_index": -100}
    finite = np.where(np.abs(x) < 1e4, x, 0)
    return [
        np.asarray(fsm.softmax_cross_entropy(finite, labels, **options)),
        np.asarray(fsm.softmax_cross_entropy_value_and_grad(finite, labels, **options)[0]),
        fsm.softmax_cross_entropy_value_and_grad(x, labels, **options)[1],
    ]


@pytest.mark.parametrize("n", [160, 256, 300, 515, 1000, 4095, 4096, 4097, 4111, 9000, 16_400, 20_001])
@pytest.mark.parametrize("thread_count", [1, 2])
def test_groups_that_overlap(isa, dtype, n, thread_count):
    """Groups of rows are read, summed and written together; a row at a time, nothing is."""
    x, labels = make_groups_that_differ(n, dtype)
    wide = np.zeros((len(x), n + 5), dtype)

    def results(x, labels, places):
        options = {"reduction": "none", "ignore_index": -100}
        gradients = fsm.softmax_cross_entropy_value_and_grad(x, labels, out=places[2], **options)
        return [
            fsm.softmax(x, out=places[0]),
            fsm.log_softmax(x, out=places[1]),
            *gradients,
            fsm.logsumexp(x),
            fsm.softmax_cross_entropy(x, labels, **options),
        ]

    def gradient(x, labels, sample_weight, out=None):
        options = {"reduction": "none", "ignore_index": -100, "sample_weight": sample_weight, "out": out}
        return fsm.softmax_cross_entropy_grad(x, labels, **options)

    rows = [results(x[i : i + 1], labels[i : i + 1], [None] * 3) for i in range(len(x))]
    expected = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    with fsm.num_threads(thread_count):
        for y in (x, np.copyto(wide[:, 2:-3], x) or wide[:, 2:-3]):
            for places in ([None] * 3, [np.zeros((len(x), 2 * n), dtype)[:, k : n + k] for k in range(3)]):
                assert_same_bytes(results(y, labels, places), expected, (isa, n))
        for function, at in ((fsm.softmax, 0), (fsm.log_softmax, 1)):
            y = x.copy()
            assert_same_bytes([function(y, out=y)], [expected[at]], (isa, n))
        for temperature in (np.full((len(x), 1), 0.7), np.arange(1.0, len(x) + 1)[:, None] / 4):
            for function in (fsm.softmax, fsm.log_softmax):
                parts = [function(x[i : i + 1], temperature=temperature[i, 0]) for i in range(len(x))]
                y = x.copy()
                assert_same_bytes([function(y, temperature=temperature, out=y)], [np.concatenate(parts)], (isa, n))
            picked = [fsm.selected_log_softmax(x[i], 1, temperature=temperature[i, 0]) for i in range(len(x))]
            index = np.ones((len(x), 1), int)
            got = fsm.selected_log_softmax(x, index, temperature=temperature)
            assert_same_bytes([got.ravel()], [np.array(picked)], (isa, n))
        for weights in (np.ones(len(x)), np.arange(len(x)) / 4):
            parts = [gradient(x[i : i + 1], labels[i : i + 1], weights[i : i + 1]) for i in range(len(x))]
            y = x.copy()
            assert_same_bytes([gradient(y, labels, weights, out=y)], [np.concatenate(parts)], (isa, n))


@pytest.mark.parametrize("n", [2, 3, 10, 21, 63, 64, 127, 128, 300, 1500])
@pytest.mark.parametrize("thread_count", [1, 2])
def test_panels_of_columns(isa, dtype, n, thread_count):
    """Columns go in panels, several for each thread; as rows, none do."""
    x, labels = make_columns_that_differ(n, 200_000 // n // 16 * 16 + 9, dtype)
    weights = np.random.default_rng(n).integers(0, 3, len(x)) / 4
    expected = results_of_columns(x, labels, weights, [None] * 4, axis=1)
    summed = summed_losses_of_columns(x, labels, axis=1)
    columns = np.ascontiguousarray(x.T)
    with fsm.num_threads(thread_count):
        *losses, gradient = summed_losses_of_columns(columns, labels, axis=0)
        assert_same_bytes([*losses, gradient.T], summed, (isa, n))
        for places in ([None] * 4, [np.zeros((n, 2 * len(x)), dtype)[:, 5 : 5 + len(x)] for _ in range(4)]):
            results = results_of_columns(columns, labels, weights, places, axis=0)
            assert_same_bytes([result.T for result in results], expected, (isa, n))
        halves = np.stack([columns[:, : len(x) // 2], columns[:, len(x) // 2 : len(x) // 2 * 2]])
        expected = [result[: len(x) // 2 * 2] for result in expected]
        halved = [values[: len(x) // 2 * 2].reshape(2, -1) for values in (labels, weights)]
        for result, rows in zip(results_of_columns(halves, *halved, [None] * 4, axis=1), expected, strict=True):
            result = np.concatenate([result[0].T, result[1].T])
            assert_same_bytes([result], [rows], (isa, n))


@pytest.mark.parametrize("n", [20, 150, 300, 1000])
def test_columns_are_shared_out(isa, dtype, n, threads):
    """Each of them once, whatever the number of groups is that threads have between them."""
    for count in (*range(33, 200, 13), 262, 525, 900):
        if n * count < 33_000:  # below PARALLEL_ELEMENTS (run.c)
            continue
        x, _ = make_columns_that_differ(n, count, dtype)
        expected = [fsm.softmax(x), fsm.logsumexp(x)]
        columns = np.ascontiguousarray(x.T)
        for thread_count in range(1, 6):
            out = np.full_like(columns, np.nan)
            threads(thread_count)
            results = [fsm.softmax(columns, 0, out=out).T, fsm.logsumexp(columns, 0)]
            assert_same_bytes(results, expected, (isa, n, count, thread_count))


@pytest.mark.parametrize("n", [20, 127, 1000, 4096, 4097, 9000, 17_000])
@pytest.mark.parametrize("thread_count", [1, 2])
def test_few_columns(isa, dtype, n, thread_count):
    """From two columns on, whole groups of them or not, in a block or more."""
    rows, all_labels = make_groups_that_differ(n, dtype)
    rows, all_labels = np.tile(rows, (14, 1))[:137], np.tile(all_labels, 14)[:137]
    weights = np.random.default_rng(n).integers(0, 3, len(rows)) / 4
    all_expected = results_of_columns(rows, all_labels, weights, [None] * 4, axis=1)
    with fsm.num_threads(thread_count):
        for count in (2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 48, 137):
            x, labels = np.ascontiguousarray(rows[:count].T), all_labels[:count]
            expected = [result[:count] for result in all_expected]
            for places in ([None] * 4, [np.zeros((n, 2 * count), dtype)[:, 1 : 1 + count] for _ in range(4)]):
                results = results_of_columns(x, labels, weights[:count], places, axis=0)
                assert_same_bytes([result.T for result in results], expected, (isa, n, count))
            for function, at in ((fsm.softmax, 0), (fsm.log_softmax, 1)):
                y = x.copy()
                assert_same_bytes([function(y, 0, out=y).T], [expected[at]], (isa, n, count))
                other_order = np.zeros_like(x, order="F")
                assert_same_bytes([function(x, 0, out=other_order).T], [expected[at]], (isa, n, count))
            middle = np.stack([x, x[::-1], x])
            for function, at in ((fsm.softmax, 0), (fsm.logsumexp, 2)):
                results = function(middle, axis=1)
                assert_same_bytes([results[0].T, results[2].T], [expected[at]] * 2, (isa, n, count))


@pytest.mark.parametrize(("n", "count"), [(130, 8000), (300, 3008), (1000, 1008)])
@pytest.mark.parametrize("thread_count", [1, 2])
def test_panels_fetched_ahead(isa, dtype, n, count, thread_count):
    """Columns of more than FETCHED_BYTES (3 MB), their lines a multiple of 64 bytes apart: panels are narrower."""
    x, labels = make_columns_that_differ(n, count, dtype)
    weights = np.arange(count) % 3 / 4
    expected = results_of_columns(x, labels, weights, [None] * 4, axis=1)
    with fsm.num_threads(thread_count):
        results = results_of_columns(np.ascontiguousarray(x.T), labels, weights, [None] * 4, axis=0)
    assert_same_bytes([result.T for result in results], expected, (isa, n))


def test_streamed_panels_of_columns(isa, dtype):
    """The same past the caches, for which lines have to be a multiple of 64 bytes apart."""
    for n, count in ((3, 1_400_016), (21, 201_008)):
        x, labels = make_columns_that_differ(n, count, dtype)
        weights = np.arange(count) % 3 / 4
        expected = results_of_columns(x, labels, weights, [None] * 4, axis=1)
        results = results_of_columns(np.ascontiguousarray(x.T), labels, weights, [None] * 4, axis=0)
        assert_same_bytes([result.T for result in results], expected, (isa, n))


WITH_OUTPUT = [
    lambda x, labels, out: fsm.softmax(x, out=out),
    lambda x, labels, out: fsm.log_softmax(x, out=out),
    lambda x, y, out: fsm.softmax_cross_entropy_grad(x, y, reduction="none", ignore_index=-100, out=out),
]


@pytest.mark.parametrize("n", [4, 10, 100])
def test_many_short_rows(isa, dtype, n):
    """Transposed rows in many batches: a part of a group last, rows anywhere in their lines of memory."""
    count = 2_000_000 // (n * np.dtype(dtype).itemsize) + 5
    x, labels = make_columns_that_differ(n, count, dtype)
    beside, in_place = np.zeros(n * count + 3, dtype)[3:].reshape(x.shape), x.copy()
    parts = [slice(first, first + 1000) for first in range(0, count, 1000)]
    for function in WITH_OUTPUT:
        np.copyto(in_place, x)
        expected = np.concatenate([function(x[part], labels[part], None) for part in parts])
        for got in (function(x, labels, None), function(x, labels, beside), function(in_place, labels, in_place)):
            assert_same_bytes([got], [expected], (isa, n))


def test_streamed_groups_that_overlap(isa, dtype):
    """Past the caches: rows that share lines of memory, certain ones, ignored ones, a part of a group last."""
    for n in (300, 1003, 4100, 50_000):
        x, labels = make_groups_that_differ(n, dtype)
        copies = 20_000_000 // x.nbytes + 1
        many, many_labels = np.tile(x, (copies, 1))[:-1], np.tile(labels, copies)[:-1]
        for function in WITH_OUTPUT:
            expected, in_place = function(x, labels, None), many.copy()
            for got in (function(many, many_labels, None), function(in_place, many_labels, in_place)):
                for first in range(0, len(many), len(x)):
                    part = got[first : first + len(x)]
                    assert_same_bytes([part], [expected[: len(part)]], (isa, n))
