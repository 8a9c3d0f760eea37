"""Rows that reach far down: results that are subnormal, or whose parts would be, beside rows where nothing is."""

import numpy as np
import oracle
import pytest

import fastsoftmax as fsm

ULPS = 2
# How far the others lie below a row's maximum. In float32 products are subnormal from 70 on, results from 87 on, and
# exponentials are 0 at 131; sums without the maximum are their own logarithm from 28 on.
GAPS = {
    np.float32: [0, 15, 17, 27, 29, 45, 68, 72, 86, 88, 100, 104, 118, 130, 133, 200, np.inf],
    np.float64: [0, 35, 37, 42, 44, 300, 670, 675, 706, 710, 740, 746, 1060, 1064, 2000, np.inf],
}
LENGTHS = [1, 2, 3, 10, 40, 130, 300, 1000, 5000, 17_000]


@pytest.fixture(params=GAPS)
def dtype(request):
    return request.param


def rows_with_gaps(n, dtype, largest=1):
    """A row of each gap below ``largest`` elements (or fewer, where two share a place), in no order."""
    rng = np.random.default_rng([n, largest])
    gaps = np.array(GAPS[dtype])[:, np.newaxis]
    x = rng.normal(0, 1, (len(gaps), n)) - gaps
    np.put_along_axis(x, rng.integers(n, size=(len(gaps), largest)), rng.normal(5, 1, (len(gaps), 1)), axis=1)
    return rng.permutation(x.astype(dtype))


@pytest.mark.parametrize("n", LENGTHS)
def test_rows_keep_their_bits(isa, dtype, n):
    """Alone, in groups and as columns, whatever the rows beside them need."""
    x = np.tile(rows_with_gaps(n, dtype), (1 if n > 1000 else 3, 1))
    labels = np.arange(len(x)) % n

    def gradient(upstream):
        options = {"reduction": "none", "grad_loss": upstream}
        return lambda x, labels, axis: fsm.softmax_cross_entropy_grad(x, labels, axis, **options)

    large = float(np.finfo(dtype).max) / 8
    functions = {
        "softmax": lambda x, _, axis: fsm.softmax(x, axis),
        "temperature": lambda x, _, axis: fsm.softmax(x, axis, temperature=0.5),
        "log_softmax": lambda x, _, axis: fsm.log_softmax(x, axis),
        "logsumexp": lambda x, _, axis: np.expand_dims(fsm.logsumexp(x, axis), axis),
        **{f"upstream {u}": gradient(u) for u in (1.0, -1.0, 1e-3, -1e6, large, -large, 0.0, -0.0)},
    }
    for name, function in functions.items():
        alone = np.concatenate([function(x[i : i + 1], labels[i : i + 1], -1) for i in range(len(x))])
        for got in (function(x, labels, -1), function(x.T.copy(), labels, 0).T):
            assert got.tobytes() == alone.tobytes(), (isa, name)


@pytest.mark.parametrize("n", [3, 10, 32, 33])
def test_rows_with_absent_classes_keep_their_bits(isa, dtype, n):
    """Logits of -inf, and beside them no others far down, or in each row one."""
    rng = np.random.default_rng(n)
    near_bound = np.linspace(60, 105, 46) if dtype == np.float32 else np.linspace(655, 712, 46)
    for gap in (0, *near_bound, *GAPS[dtype]):
        x = rng.normal(0, 1, (40, n)).astype(dtype)
        x[:, 2:][rng.random((40, n - 2)) < 0.5] = -np.inf
        x[:, 2] -= gap
        labels = np.arange(len(x)) % n
        x[7] = np.nan if gap == 0 else x[7]
        for factor in (1.0, 1e-3, 2.0**40, -(2.0**-30)):

            def gradient(x, labels, factor=factor):
                return fsm.softmax_cross_entropy_grad(x, labels, reduction="none", grad_loss=factor)

            for function in (lambda x, _: fsm.softmax(x), gradient):
                alone = np.concatenate([function(x[i : i + 1], labels[i : i + 1]) for i in range(len(x))])
                assert function(x, labels).tobytes() == alone.tobytes(), (isa, gap)


@pytest.mark.parametrize("largest", [1, 2, 3])
@pytest.mark.parametrize("n", LENGTHS)
def test_results_are_exact(isa, dtype, n, largest):
    x = rows_with_gaps(n, dtype, largest)
    exact = oracle.rows(x)
    assert oracle.ulp_error(fsm.softmax(x), exact.softmax, dtype).max() <= ULPS, isa
    assert oracle.ulp_error(fsm.log_softmax(x), exact.log_softmax, dtype).max() <= ULPS, isa
    assert oracle.ulp_error(fsm.logsumexp(x), exact.logsumexp, dtype).max() <= ULPS, isa


@pytest.mark.parametrize(("dtype", "gaps"), [(np.float32, (20, 100)), (np.float64, (35, 700))])
def test_logsumexp_whose_terms_cancel(isa, dtype, gaps):
    """A maximum just below 0 takes up to two thirds of the logarithm of 1 + e**-gap away."""
    rng = np.random.default_rng(1)
    gap = rng.uniform(*gaps, 20_000)
    x = np.stack([-np.exp(-gap) * rng.uniform(0, 0.66, len(gap)), -gap], axis=1).astype(dtype)
    assert oracle.ulp_error(fsm.logsumexp(x), oracle.rows(x).logsumexp, dtype).max() <= ULPS, isa


@pytest.mark.parametrize("upstream", [1.0, -1.0, 2.0**-20, -(2.0**40), 2.0**70])
@pytest.mark.parametrize("n", LENGTHS)
def test_losses_and_gradients_are_exact(isa, dtype, n, upstream):
    x = rows_with_gaps(n, dtype)
    info, options = np.finfo(dtype), {"reduction": "none"}
    for labels in (np.argmax(x, axis=1), (np.argmax(x, axis=1) + 1) % n):
        exact = oracle.cross_entropy(x, labels, grad_loss=upstream, **options)
        loss, gradient = fsm.softmax_cross_entropy_value_and_grad(x, labels, **options)
        got = fsm.softmax_cross_entropy_grad(x, labels, grad_loss=upstream, **options)
        finite = np.isfinite(exact.loss)  # but where the label's logit is -inf
        bound = 6 * info.eps * exact.terms + info.smallest_subnormal
        assert np.all(np.abs(loss[finite] - exact.loss[finite]) <= bound[finite]), isa
        assert np.all(loss[~finite] == np.inf), isa
        bound = 6 * info.eps * exact.gradient_terms + 2 * info.smallest_subnormal
        assert np.all(np.abs(got - exact.gradient) <= bound), isa
        if upstream == 1:
            assert got.tobytes() == gradient.tobytes(), isa
