"""What each value gives: special ones as the docstrings say, `b`, `where`, `temperature`; and never a warning.

pyproject.toml turns warnings into errors; here floating-point signals that NumPy would report raise too.
"""

import numpy as np
import oracle
import pytest

import fastsoftmax as fsm

INF, NAN = np.inf, np.nan

# Below the width of any vector, at it, beyond it, beyond a block, beyond LONG_ROW: each has kernels of its own.
WIDTHS = [1, 2, 3, 7, 16, 31, 32, 33, 100, 1000, 5000, 20_000]


@pytest.fixture(autouse=True)
def _strict(isa):
    with np.errstate(all="raise"):
        yield


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param


@pytest.fixture(params=WIDTHS)
def n(request):
    return request.param


def rows_with(values, n, dtype):
    """Ordinary rows of length `n`, with `values` put at the front, in the middle, at the end."""
    rows = np.tile(np.linspace(-3, 3, n).astype(dtype), (3, 1))
    if n < len(values):
        return None
    for row, start in zip(rows, (0, (n - len(values)) // 2, n - len(values)), strict=True):
        row[start : start + len(values)] = values
    return rows


def each_axis(x):
    """The rows as they are, and as columns."""
    yield x, -1
    yield np.ascontiguousarray(x.T), 0


@pytest.mark.parametrize(
    "values",
    [(NAN,), (-NAN,), (NAN, INF), (INF, NAN), (NAN, -INF), (INF, NAN, -INF), (NAN, NAN)],
    ids=str,
)
def test_nan(values, n, dtype):
    rows = rows_with(values, n, dtype)
    if rows is None:
        pytest.skip("the row is too short")
    for x, axis in each_axis(rows):
        assert np.all(np.isnan(fsm.softmax(x, axis)))
        assert np.all(np.isnan(fsm.log_softmax(x, axis)))
        assert np.all(np.isnan(fsm.logsumexp(x, axis)))


@pytest.mark.parametrize("values", [(INF,), (INF, INF), (INF, -INF), (-INF, 0, INF)], ids=str)
def test_positive_infinity(values, n, dtype):
    rows = rows_with(values, n, dtype)
    if rows is None:
        pytest.skip("the row is too short")
    for x, axis in each_axis(rows):
        assert np.all(np.isnan(fsm.softmax(x, axis)))
        assert np.all(np.isnan(fsm.log_softmax(x, axis)))
        assert np.all(fsm.logsumexp(x, axis) == INF)


@pytest.mark.usefixtures("exact_values")
@pytest.mark.parametrize("values", [(-INF,), (-INF, -INF)], ids=str)
def test_negative_infinity_among_finite_values(values, n, dtype):
    rows = rows_with(values, n, dtype)
    if n <= len(values):
        pytest.skip("nothing finite is left in the row")
    absent = np.isneginf(rows)
    p, logp = fsm.softmax(rows), fsm.log_softmax(rows)
    assert np.all(p[absent] == 0)
    assert np.all(logp[absent] == -INF)
    exact = oracle.rows(rows)
    assert oracle.ulp_error(p, exact.softmax, dtype).max() <= 2
    assert oracle.ulp_error(logp, exact.log_softmax, dtype).max() <= 2
    assert oracle.ulp_error(fsm.logsumexp(rows), exact.logsumexp, dtype).max() <= 2
    columns = np.ascontiguousarray(rows.T)
    np.testing.assert_array_equal(fsm.softmax(columns, 0).T, p)
    np.testing.assert_array_equal(fsm.log_softmax(columns, 0).T, logp)


def test_only_negative_infinity(n, dtype):
    for x, axis in each_axis(np.full((3, n), -INF, dtype)):
        assert np.all(np.isnan(fsm.softmax(x, axis)))
        assert np.all(np.isnan(fsm.log_softmax(x, axis)))
        assert np.all(fsm.logsumexp(x, axis) == -INF)


def test_no_element(dtype):
    x = np.empty((3, 0), dtype)
    for axis, shape in ((-1, (3,)), (1, (3,)), (0, (0,)), (None, ()), ((0, 1), ())):
        for function in (fsm.softmax, fsm.log_softmax):
            result = function(x, axis)
            assert result.shape == (3, 0)
            assert result.dtype == dtype
        result = fsm.logsumexp(x, axis)
        assert np.shape(result) == shape
        assert result.dtype == dtype
        assert np.all(result == -INF)
        result, sign = fsm.logsumexp(x, axis, return_sign=True)
        assert np.all(result == -INF)
        assert np.all(sign == 0)
        assert sign.dtype == dtype


def test_special_rows_leave_their_neighbours_alone(dtype, n):
    """Rows that share a vector with a special one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(37, n)).astype(dtype)
    wanted = fsm.softmax(x), fsm.log_softmax(x), fsm.logsumexp(x)
    special = {3: NAN, 8: INF, 9: -INF, 36: NAN}
    for row, value in special.items():
        x[row] = value
    others = [i for i in range(37) if i not in special]
    for got, expected in zip((fsm.softmax(x), fsm.log_softmax(x), fsm.logsumexp(x)), wanted, strict=True):
        np.testing.assert_array_equal(got[others], expected[others])


# ---- Magnitudes -------------------------------------------------------------------------


@pytest.mark.usefixtures("exact_values")
def test_largest_finite_values(dtype, n):
    largest = np.finfo(dtype).max
    x = np.full((4, n), -largest, dtype)
    x[0] = largest
    x[1:, 0] = largest, 0, 1
    p, logp = fsm.softmax(x), fsm.log_softmax(x)
    exact = oracle.rows(x)
    assert oracle.ulp_error(p, exact.softmax, dtype).max() <= 2
    assert oracle.ulp_error(logp, exact.log_softmax, dtype).max() <= 2
    assert oracle.ulp_error(fsm.logsumexp(x), exact.logsumexp, dtype).max() <= 2
    if n > 1:
        # The distance from the largest number to its negative is beyond all numbers.
        assert np.all(logp[1, 1:] == -INF)
        assert np.all(np.isfinite(logp[2]))


@pytest.mark.usefixtures("exact_values")
def test_small_probabilities_underflow_gradually(dtype):
    lowest = float(np.log(np.finfo(dtype).smallest_subnormal.astype(oracle.Wide)))
    x = np.array([0, lowest + 9, lowest + 3, lowest + 0.5, lowest - 3], dtype)
    p = fsm.softmax(x)
    assert 0 < p[3] < p[2] < p[1] < np.finfo(dtype).tiny
    assert p[4] == 0
    assert oracle.ulp_error(p, oracle.rows(x).softmax, dtype).max() <= 2


def test_results_do_not_exceed_one(dtype, n):
    """Nor is a log-probability above 0."""
    x = np.zeros((2, n), dtype)
    x[1, 0] = 50
    assert fsm.softmax(x).max() <= 1
    assert fsm.log_softmax(x).max() <= 0
    if n == 1:
        assert np.all(oracle.ulp_error(fsm.softmax(x), 1, dtype) <= 2)
        assert np.all(fsm.log_softmax(x) == 0)
        assert np.all(oracle.ulp_error(fsm.logsumexp(x), x[:, 0], dtype) <= 2)


# ---- where ------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [0, 1e30, -1e30, INF, -INF, NAN])
def test_masked_elements_take_no_part(hidden, n, dtype):
    rng = np.random.default_rng(n)
    x = rng.normal(0, 4, (5, n)).astype(dtype)
    mask = rng.random((5, n)) < 0.6
    mask[:, 0] = True
    x[~mask] = hidden
    for values, where, axis in ((x, mask, -1), (x.T.copy(), mask.T.copy(), 0)):
        kept = np.where(where, values, dtype(-INF))
        p = fsm.softmax(values, axis, where=where)
        logp = fsm.log_softmax(values, axis, where=where)
        np.testing.assert_array_equal(p, fsm.softmax(kept, axis))
        np.testing.assert_array_equal(logp, fsm.log_softmax(kept, axis))
        np.testing.assert_array_equal(fsm.logsumexp(values, axis, where=where), fsm.logsumexp(kept, axis))
        assert np.all(p[~where] == 0)
        assert np.all(logp[~where] == -INF)
        if n > 7 and hidden not in (-INF, -1e30):  # those have no weight without the mask either
            assert not np.array_equal(p, fsm.softmax(values, axis))


def test_fully_masked_row(n, dtype):
    x = np.full((2, n), NAN, dtype)
    x[1] = 1
    mask = np.array([[False], [True]])
    assert np.all(fsm.softmax(x, where=mask)[0] == 0)
    assert np.all(fsm.log_softmax(x, where=mask)[0] == -INF)
    assert fsm.logsumexp(x, where=mask)[0] == -INF
    np.testing.assert_array_equal(fsm.softmax(x, where=mask)[1], fsm.softmax(x[1]))
    value, sign = fsm.logsumexp(x, where=mask, return_sign=True)
    np.testing.assert_array_equal(sign, [0, 1])
    value, sign = fsm.logsumexp(x, where=mask, b=np.full((2, n), 2.0, dtype), return_sign=True)
    np.testing.assert_array_equal(sign, [0, 1])
    assert value[0] == -INF


def test_table_speaks_of_the_unmasked_elements(dtype):
    x = np.array([[NAN, 1, -INF, -INF], [1, INF, 2, 3], [NAN, -INF, 5, 6]], dtype)
    mask = np.array([[False, False, True, True], [False, True, True, True], [True, True, True, False]])
    p = fsm.softmax(x, where=mask)
    # Only -inf, +inf, a NaN among those that take part; the masked ones are 0 all the same.
    np.testing.assert_array_equal(p, np.where(mask, NAN, 0))
    np.testing.assert_array_equal(fsm.log_softmax(x, where=mask), np.where(mask, NAN, -INF))
    np.testing.assert_array_equal(fsm.logsumexp(x, where=mask), [-INF, INF, NAN])


def test_where_broadcasts_to_x(dtype):
    x = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    for mask in (
        np.array([True, False, True, True]),
        np.array([[True], [False], [True]]),
        np.array([[[True]], [[False]]]),
        True,
        False,
        [True, False, True, False],
    ):
        full = np.broadcast_to(mask, x.shape)
        for axis in (-1, 0, (0, 2), None):
            np.testing.assert_array_equal(fsm.softmax(x, axis, where=mask), fsm.softmax(x, axis, where=full.copy()))
            kept = np.where(full, x, dtype(-INF))
            np.testing.assert_array_equal(fsm.logsumexp(x, axis, where=mask), fsm.logsumexp(kept, axis))
    with pytest.raises(ValueError, match="where"):
        fsm.softmax(x, where=np.ones((2, 2, 3, 4), bool))
    with pytest.raises(ValueError, match="where"):
        fsm.logsumexp(x, where=np.ones(3, bool))
    with pytest.raises(TypeError, match="where"):
        fsm.softmax(x, where=np.ones(4))


def test_where_in_place(dtype):
    x = np.array([[1, 2, 3], [4, 5, NAN]], dtype)
    mask = np.array([[True, True, False], [True, True, False]])
    wanted = fsm.softmax(x, where=mask)
    original = x.copy()
    out = np.empty_like(x)
    assert fsm.softmax(x, where=mask, out=out) is out
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(x, original)
    assert fsm.softmax(x, where=mask, out=x) is x
    np.testing.assert_array_equal(x, wanted)


# ---- temperature ------------------------------------------------------------------------


@pytest.mark.usefixtures("exact_values")
@pytest.mark.parametrize("temperature", [2, 0.5, np.float32(2), np.int8(4), 4.0, [[2.0]]])
def test_powers_of_two_scale_exactly(temperature, dtype, n):
    """Scaling by a power of two rounds nothing: the result is that of ``x / temperature`` to the bit or so."""
    x = np.random.default_rng(n).normal(0, 4, (3, n)).astype(dtype)
    exact = oracle.rows(x / dtype(np.squeeze(temperature)))
    got = fsm.softmax(x, temperature=temperature)
    assert got.dtype == dtype
    assert got.shape == x.shape
    assert oracle.ulp_error(got, exact.softmax, dtype).max() <= 2


def test_one_temperature_a_row(dtype):
    """Of the shape of `x` with `axis` kept as 1, or any that broadcasts to it."""
    x = np.random.default_rng(3).normal(0, 4, (3, 4, 5)).astype(dtype)
    t = np.array([0.5, 1, 2, 4])
    cases = [(-1, t[:, None]), (2, np.tile(t[:, None], (3, 1, 1))), (0, t[:, None]), (1, t[:3, None, None])]
    for axis, temperature in cases:
        n = x.shape[axis]
        kept = np.moveaxis(np.broadcast_to(temperature, np.max(x, axis, keepdims=True).shape), axis, -1)
        rows = np.moveaxis(x, axis, -1).reshape(-1, n)
        for function in (fsm.softmax, fsm.log_softmax):
            got = np.moveaxis(function(x, axis, temperature=temperature), axis, -1).reshape(-1, n)
            for row, one, result in zip(rows, kept.ravel(), got, strict=True):
                np.testing.assert_array_equal(result, function(row, temperature=one))
    np.testing.assert_array_equal(
        fsm.selected_log_softmax(x, np.ones((3, 4), int), temperature=t[:, None]),
        fsm.log_softmax(x, temperature=t[:, None])[..., 1],
    )
    np.testing.assert_array_equal(
        fsm.softmax(x, (1, 2), temperature=t[:3, None, None])[2], fsm.softmax(x[2], None, temperature=2)
    )


@pytest.mark.usefixtures("isa")
def test_one_temperature_for_many_rows(dtype):
    """More rows than a group has share one, and the next ones another."""
    x = np.random.default_rng(4).normal(0, 4, (3, 40, 5)).astype(dtype)
    t = np.array([0.5, 0.7, 3])
    for function in (fsm.softmax, fsm.log_softmax):
        for axis in (1, 2):
            got = function(x, axis, temperature=t[:, None, None])
            for i in range(3):
                np.testing.assert_array_equal(got[i], function(x[i], axis - 1, temperature=t[i]))


def test_temperature_keeps_the_dtype(dtype):
    x = np.arange(3, dtype=dtype)
    assert fsm.softmax(x, temperature=np.float64(2)).dtype == dtype
    assert fsm.log_softmax(x[None], temperature=np.array([[2.0]])).dtype == dtype


@pytest.mark.usefixtures("exact_values")
@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e-6, 1e6, 1e38, 1e300])
def test_extreme_temperatures(temperature, dtype):
    """Never NaN: at the one end everything goes to the maximum, at the other all are equal."""
    x = np.array([1, 2, 3, 3], dtype)
    p, logp = fsm.softmax(x, temperature=temperature), fsm.log_softmax(x, temperature=temperature)
    with np.errstate(all="ignore"):
        scaled = (x.astype(oracle.Wide) - 3) / oracle.Wide(temperature)
    exact = oracle.rows(scaled)
    # The exponents are 0, or beyond all exponentials, or below all differences: nothing to lose but the 2 ULP.
    np.testing.assert_allclose(p, exact.softmax.astype(dtype), rtol=2 * np.finfo(dtype).eps, atol=1e-30)
    assert not np.any(np.isnan(logp))
    assert np.all(logp <= 0)
    assert oracle.ulp_error(logp[2], exact.log_softmax[2], dtype) <= 2


@pytest.mark.usefixtures("exact_values")
@pytest.mark.parametrize("fraction", [1, 1 / 2, 1 / 2**20, 1 / 2**30])
def test_large_values_over_a_large_temperature(fraction, dtype):
    """x - max may be beyond the largest number where (x - max) / T is not."""
    largest = np.finfo(dtype).max * dtype(fraction)
    x = np.array([largest, -largest, 0], dtype)
    exact = oracle.rows(np.array([1, -1, 0]))
    assert oracle.ulp_error(fsm.softmax(x, temperature=largest), exact.softmax, dtype).max() <= 2
    # Distances of 2 and 1, rounded twice at most.
    eps = np.finfo(dtype).eps
    assert np.all(np.abs(fsm.log_softmax(x, temperature=largest) / exact.log_softmax - 1) <= 4 * eps)


@pytest.mark.usefixtures("exact_values")
@pytest.mark.parametrize("exponent", [-4, -1])
def test_small_values_over_a_small_temperature(exponent, dtype):
    """The inverse of the temperature may be beyond the largest number."""
    smallest = float(np.finfo(dtype).tiny) * 2.0**exponent
    x = np.array([smallest, -smallest, 0], dtype)
    exact = oracle.rows(np.array([1, -1, 0]))
    assert oracle.ulp_error(fsm.softmax(x, temperature=smallest), exact.softmax, dtype).max() <= 2
    eps = np.finfo(dtype).eps
    assert np.all(np.abs(fsm.log_softmax(x, temperature=smallest) / exact.log_softmax - 1) <= 4 * eps)


def test_special_values_with_a_temperature(dtype):
    x = np.array([[1, NAN, 2], [1, INF, 2], [-INF, -INF, -INF], [1, -INF, 1]], dtype)
    for t in (0.5, 3.0, 1e300, 1e-300):
        p, logp = fsm.softmax(x, temperature=t), fsm.log_softmax(x, temperature=t)
        assert np.all(np.isnan(p[:3]))
        assert np.all(np.isnan(logp[:3]))
        assert p[3, 1] == 0
        assert logp[3, 1] == -INF
        assert oracle.ulp_error(p[3, ::2], 0.5, dtype).max() <= 2
        assert oracle.ulp_error(logp[3, ::2], -np.log(oracle.Wide(2)), dtype).max() <= 2
    masked = fsm.softmax(x[:2], temperature=2, where=[True, False, True])
    pair = fsm.softmax(np.array([1, 2], dtype), temperature=2)
    np.testing.assert_array_equal(masked, [[pair[0], 0, pair[1]]] * 2)


@pytest.mark.parametrize("temperature", [0, -1, INF, -INF, NAN, 0.0, [[1.0], [0.0]], [[1.0], [NAN]]])
def test_bad_temperatures(temperature, dtype):
    x = np.ones((2, 3), dtype)
    for function in (fsm.softmax, fsm.log_softmax):
        out = np.full_like(x, 7)
        with pytest.raises(ValueError, match="temperature"):
            function(x, temperature=temperature, out=out)
        assert np.all(out == 7)
    with pytest.raises(ValueError, match="temperature"):
        fsm.selected_log_softmax(x, [0, 1], temperature=temperature)


def test_ints_beyond_64_bits(dtype):
    """As scalars, where NumPy's ufuncs take them beside floats."""
    x = np.array([[1, 2, 4]], dtype)
    np.testing.assert_array_equal(fsm.softmax(x, temperature=10**20), fsm.softmax(x, temperature=1e20))
    np.testing.assert_array_equal(fsm.logsumexp(x, b=-(2**70), return_sign=True)[1], [-1])
    np.testing.assert_array_equal(fsm.logsumexp(x, b=2**70), fsm.logsumexp(x, b=2.0**70))
    for grad_loss in (2**64, 2.0**64):
        gradient = fsm.softmax_cross_entropy_grad(x, [1], grad_loss=grad_loss)
        np.testing.assert_array_equal(gradient, fsm.softmax_cross_entropy_grad(x, [1]) * dtype(2.0**64))
    with pytest.raises(ValueError, match="temperature"):
        fsm.softmax(x, temperature=10**400)


@pytest.mark.parametrize("temperature", ["1", 1j, None, [[1j], [1]], object()])
def test_temperatures_of_a_wrong_kind(temperature, dtype):
    with pytest.raises(TypeError, match="temperature"):
        fsm.softmax(np.ones((2, 3), dtype), temperature=temperature)


def test_temperatures_of_a_wrong_shape(dtype):
    x = np.ones((2, 3), dtype)
    for temperature in (np.ones(3), np.ones((2, 3)), np.ones((3, 1)), np.ones((1, 2, 1))):
        with pytest.raises(ValueError, match="temperature"):
            fsm.softmax(x, temperature=temperature)


# ---- b ----------------------------------------------------------------------------------


def weighted(x, b):
    """Exact logarithm of ``abs(sum(b * exp(x)))``, its sign, and how ill-conditioned that is."""
    terms = [oracle.mpmath.mpf(float(w)) * oracle.mpmath.exp(float(v)) for v, w in zip(x, b, strict=True) if w]
    total = oracle.mpmath.fsum(terms)
    if total == 0:
        return -INF, 0, 0
    magnitude = oracle.mpmath.fsum([abs(t) for t in terms])
    return oracle.wide([oracle.mpmath.log(abs(total))])[0], float(np.sign(float(total))), float(magnitude / abs(total))


def test_b(dtype, n):
    rng = np.random.default_rng(n)
    x = rng.normal(0, 4, (6, n)).astype(dtype)
    b = rng.normal(0, 2, (6, n)).astype(dtype)
    b[0] = np.abs(b[0])
    b[1, rng.random(n) < 0.5] = 0
    values, signs = fsm.logsumexp(x, b=b, return_sign=True)
    plain = fsm.logsumexp(x, b=b)
    assert values.dtype == signs.dtype == plain.dtype == dtype
    for i in range(6):
        exact, sign, condition = weighted(x[i], b[i])
        assert signs[i] == sign
        if sign == 0:
            assert values[i] == plain[i] == -INF
            continue
        # Each term b * exp(x) has three roundings at most (exp, the product, the sum of pairs), of
        # eps / 2 each, that the condition number of the sum raises; the logarithm turns them into
        # absolute errors. The logarithm itself and its sum with the maximum round relative to both.
        magnitude = max(1, abs(float(exact)), abs(float(x[i].max())))
        assert abs(values[i] - exact) <= np.finfo(dtype).eps * (2 * condition + 2 * magnitude)
        np.testing.assert_array_equal(plain[i], values[i] if sign > 0 else NAN)


def test_zero_factors_take_no_part(dtype):
    x = np.array([[NAN, 1, 2], [INF, 1, 2], [1e30, 1, 2], [-INF, 1, 2]], dtype)
    expected = fsm.logsumexp(np.array([1, 2], dtype))
    for zero in (0.0, -0.0):
        b = np.array([zero, 1, 1], dtype)
        np.testing.assert_array_equal(fsm.logsumexp(x, b=b), np.full(4, expected))
    values, signs = fsm.logsumexp(x, b=np.zeros(3, dtype), return_sign=True)
    np.testing.assert_array_equal(values, np.full(4, -INF))
    np.testing.assert_array_equal(signs, np.zeros(4))


def test_sign(dtype):
    x = np.array([[1, 2], [1, 1], [0, 1], [3, 3]], dtype)
    b = np.array([[1, 1], [1, -1], [1, -1], [-2, -0.5]], dtype)
    values, signs = fsm.logsumexp(x, b=b, return_sign=True)
    np.testing.assert_array_equal(signs, [1, 0, -1, -1])
    assert values[1] == -INF
    assert np.all(np.isfinite(values[[0, 2, 3]]))
    without = fsm.logsumexp(x, b=b)
    np.testing.assert_array_equal(without, [values[0], -INF, NAN, NAN])
    values, signs = fsm.logsumexp(x, return_sign=True)
    np.testing.assert_array_equal(signs, np.ones(4))
    np.testing.assert_array_equal(values, fsm.logsumexp(x))


def test_sign_of_special_rows(dtype):
    x = np.array([[NAN, 1], [INF, 1], [-INF, -INF], [INF, INF], [INF, INF]], dtype)
    values, signs = fsm.logsumexp(x[:3], return_sign=True)
    np.testing.assert_array_equal(values, [NAN, INF, -INF])
    np.testing.assert_array_equal(signs, [NAN, 1, 0])
    b = np.array([[1, 1], [-1, 1], [1, 1], [1, -1], [-1, -2]], dtype)
    values, signs = fsm.logsumexp(x, b=b, return_sign=True)
    np.testing.assert_array_equal(values, [NAN, INF, -INF, NAN, INF])
    np.testing.assert_array_equal(signs, [NAN, -1, 0, NAN, -1])
    np.testing.assert_array_equal(fsm.logsumexp(x, b=b), [NAN, NAN, -INF, NAN, NAN])


def test_special_factors(dtype):
    x = np.array([[1, 2], [1, 2], [1, 2], [1, 2]], dtype)
    b = np.array([[NAN, 1], [INF, 1], [-INF, 1], [INF, -INF]], dtype)
    values, signs = fsm.logsumexp(x, b=b, return_sign=True)
    np.testing.assert_array_equal(values, [NAN, INF, INF, NAN])
    np.testing.assert_array_equal(signs, [NAN, 1, -1, NAN])


def test_b_with_large_values_of_x(dtype):
    """An overflow of the exponentials must not show."""
    x = np.array([10_000, -10_000, np.finfo(dtype).max], dtype)
    exact = np.log(oracle.Wide(5)) + x
    for b in ([2, 3], [2.5, 2.5]):
        got = fsm.logsumexp(np.stack([x, x], axis=-1), b=np.array(b, dtype))
        assert np.all(oracle.ulp_error(got, exact, dtype) <= 2)


def test_b_of_any_magnitude(dtype):
    """Finite rows never overflow: the sum may be beyond the largest number, its logarithm is not."""
    info = np.finfo(dtype)
    b = np.array([[info.max, info.max / 2], [info.max, -info.max / 2], [info.smallest_subnormal, 0]], dtype)
    x = np.array([[0, 0], [1, 1], [3, 3]], dtype)
    exact = np.log(np.array([1.5, 0.5, 1], oracle.Wide)) + np.log(b[:, 0].astype(oracle.Wide)) + x[:, 0]
    got = fsm.logsumexp(x, b=b)
    assert np.all(np.isfinite(got))
    # The sums are exact but for the exponentials; each of the logarithm's two summands rounds once.
    assert np.all(np.abs(got - exact) <= 2 * info.eps * np.abs(exact))


@pytest.mark.parametrize("negative", [False, True])
def test_b_of_many_magnitudes_in_a_row(dtype, negative):
    """The factor of the largest element may be far below the largest factor, and the other way round."""
    info = np.finfo(dtype)
    rng = np.random.default_rng(7)
    exponents = rng.integers(info.minexp, info.maxexp - 1, (60, 5))
    b = np.ldexp(rng.uniform(1, 2, (60, 5)), exponents).astype(dtype)
    x = (rng.normal(0, 3, (60, 5)) - exponents * np.log(2) * rng.integers(0, 2, (60, 5))).astype(dtype)
    if negative:
        b[:, 0] *= -1
    values, signs = fsm.logsumexp(x, b=b, return_sign=True)
    for i in range(60):
        exact, sign, condition = weighted(x[i], b[i])
        assert signs[i] == sign
        shifted = x[i] + np.log(np.abs(b[i]))
        magnitude = max(1, abs(float(exact)), abs(float(shifted.max())))
        assert abs(values[i] - exact) <= info.eps * (2 * condition + (2 + condition) * magnitude)


def test_largest_terms_that_cancel(dtype):
    """What is left may be smaller than the largest by more than the dtype's whole range above 0."""
    far = {np.float32: (20, 60, 87, 100), np.float64: (100, 500, 720, 760)}[dtype]
    for distance in far:
        x = np.array([distance, distance, 0], dtype)
        value, sign = fsm.logsumexp(x, b=np.array([1, -1, -1], dtype), return_sign=True)
        assert abs(value) <= np.finfo(dtype).eps * distance
        assert sign == -1


def test_terms_that_nearly_cancel(dtype):
    """The sum's error is small beside its terms, whatever is left of them, and value and sign agree."""
    rng = np.random.default_rng(8)
    parts = [(p, q) for p in range(1, 12) for q in range(1, 12)]
    parts += [tuple(rng.integers(1, 20, rng.integers(2, 9))) for _ in range(300)]
    rows = [(np.log([sum(part), *part]), np.array([1] + [-1] * len(part))) for part in parts]
    rows += [(np.array([tiny, 0]), np.array([1, -1])) for tiny in (1e-17, 1e-20, 1e-37, -1e-17, -1e-20, -1e-37)]
    eps = np.finfo(dtype).eps
    for x, b in rows:
        x = x.astype(dtype)
        for factors in (b, -b, b[::-1]):
            value, sign = fsm.logsumexp(x, b=factors.astype(dtype), return_sign=True)
            terms = [int(f) * oracle.mpmath.exp(float(v)) for f, v in zip(factors, x, strict=True)]
            total, magnitude = oracle.mpmath.fsum(terms), oracle.mpmath.fsum([abs(t) for t in terms])
            assert (sign == 0) == (value == -INF)
            got = int(sign) * oracle.mpmath.exp(float(value))
            rounded = 2 * max(1, abs(float(value)), abs(x).max()) * abs(got) if sign else 0
            assert abs(got - total) <= eps * (magnitude + rounded)
            np.testing.assert_array_equal(fsm.logsumexp(x, b=factors.astype(dtype)), value if sign >= 0 else NAN)


def test_b_broadcasts_against_x(dtype):
    rng = np.random.default_rng(4)
    shapes = [((3, 4), (4,)), ((4,), (3, 4)), ((3, 1), (1, 4)), ((), (4,)), ((3, 4), ()), ((2, 1, 4), (3, 1))]
    for x_shape, b_shape in shapes:
        x, b = rng.normal(size=x_shape).astype(dtype), rng.uniform(0.5, 2, b_shape).astype(dtype)
        full_x, full_b = (a.copy() for a in np.broadcast_arrays(x, b))
        for axis in (-1, 0, None):
            got = fsm.logsumexp(x, axis, b=b)
            np.testing.assert_array_equal(got, fsm.logsumexp(full_x, axis, b=full_b))
            assert np.shape(got) == np.shape(full_x.sum(axis))
    with pytest.raises(ValueError, match="x and b"):
        fsm.logsumexp(np.ones(3, dtype), b=np.ones(4, dtype))


def test_b_and_where(dtype):
    x = np.array([[1, 2, NAN], [3, 4, 5]], dtype)
    b = np.array([[1, -2, 1], [NAN, 2, 3]], dtype)
    mask = np.array([[True, True, False], [False, True, True]])
    got = fsm.logsumexp(x, b=b, where=mask, return_sign=True)
    first = fsm.logsumexp(x[0, :2], b=b[0, :2], return_sign=True)
    second = fsm.logsumexp(x[1, 1:], b=b[1, 1:], return_sign=True)
    np.testing.assert_allclose(got[0], [first[0], second[0]], rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(got[1], [-1, 1])


def test_out_takes_the_result_and_not_the_sign(dtype):
    x = np.array([[1, 2], [3, 4]], dtype)
    b = np.array([1, -1], dtype)
    out = np.empty(2, dtype)
    value, sign = fsm.logsumexp(x, b=b, return_sign=True, out=out)
    assert value is out
    assert sign is not out
    np.testing.assert_array_equal(sign, [-1, -1])
    np.testing.assert_array_equal(out, fsm.logsumexp(x, b=b, return_sign=True)[0])


def test_keepdims(dtype):
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(dtype)
    for axis, shape in ((-1, (2, 3, 1)), (0, (1, 3, 4)), ((0, 2), (1, 3, 1)), (None, (1, 1, 1)), ((), (2, 3, 4))):
        kept = fsm.logsumexp(x, axis, keepdims=True)
        assert kept.shape == shape
        np.testing.assert_array_equal(kept.ravel(), np.ravel(fsm.logsumexp(x, axis)))
        value, sign = fsm.logsumexp(x, axis, keepdims=True, return_sign=True)
        assert value.shape == sign.shape == shape
        with pytest.raises(ValueError, match="out"):
            fsm.logsumexp(x, axis, keepdims=axis == (), out=np.empty((7, 7, 7), dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "n"), [(1, 1), (1, 7), (200, 1), (200, 3), (200, 20), (200, 300), (2, 9000), (2, 20_000)]
)
@pytest.mark.parametrize("others", [-np.inf, -60])
def test_the_only_probability_is_exactly_one(dtype, rows, n, others):
    # Beside all others it is 1 to within a quarter of an ulp, but its exponential is rounded and so is the inverse.
    rng = np.random.default_rng(n)
    for _ in range(20 if rows == 1 else 1):
        largest = rng.normal(0, 30, (rows, 1))
        x = np.where(np.arange(n) == rng.integers(0, n, (rows, 1)), largest, largest + others).astype(dtype)
        for p in (fsm.softmax(x), fsm.softmax(np.asfortranarray(x.T), axis=0).T, fsm.softmax(x.T.copy(), axis=0).T):
            np.testing.assert_array_equal(p.max(axis=-1), 1)


@pytest.mark.parametrize("tail", range(2, 17))
def test_a_nan_beside_the_max_in_a_short_last_block(dtype, tail):
    """log_softmax_vjp goes by elements: a NaN leaves the others as they are, and the max must be found beside it."""
    n = 4096 + tail
    logp = np.full(n, -80 if dtype == np.float32 else -400, dtype)
    logp[4096] = 0
    for position in range(4097, n):
        row = logp.copy()
        row[position] = NAN
        assert fsm.log_softmax_vjp(row, np.ones(n, dtype))[4096] == 1 - n
