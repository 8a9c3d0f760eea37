"""The recipes of docs/recipes against the packages they are for, and against exact arithmetic."""

import importlib
import json
import warnings
from pathlib import Path

import mpmath
import numpy as np
import oracle
import pytest

RECIPES = Path(__file__).parent.parent / "docs" / "recipes"


@pytest.fixture
def recipe(monkeypatch):
    """A function that imports a recipe by name."""
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module


# ---- Gradient boosting ------------------------------------------------------------------


@pytest.fixture(params=[None, "sample weights"])
def digits(request):
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    weights = None if request.param is None else np.random.default_rng(0).uniform(0.5, 2, len(labels))
    return pixels, labels, weights


def nodes(tree):
    """All nodes of a tree, from either library's JSON, each after its parent."""
    yield tree
    below = [tree[side] for side in ("left_child", "right_child") if side in tree]
    for child in below + tree.get("children", []):
        yield from nodes(child)


def splits(trees):
    """Every tree's shape, and each split's feature and threshold."""
    names = ("split", "split_condition", "split_feature", "threshold")
    return [[[node.get(name) for name in names] for node in nodes(tree)] for tree in trees]


def test_xgboost(recipe, digits):
    """The trees of multi:softprob; leaves within what its own float32 softmax rounds.

    XGBoost subtracts its gradients' sums in float64, so a leaf is off as a gradient is: by some
    eps of float32, of which a margin sums one for each of the rounds.
    """
    xgboost = pytest.importorskip("xgboost")
    pixels, labels, weights = digits
    data = xgboost.DMatrix(pixels, labels, weight=weights)
    rounds = 10
    # A start of one's own: by default XGBoost estimates it for its own objective alone.
    parameters = {"objective": "multi:softprob", "num_class": 10, "max_depth": 4, "base_score": 0.5, "nthread": 1}
    theirs = xgboost.train(parameters, data, rounds)
    ours = xgboost.train(parameters, data, rounds, obj=recipe("boosting").xgboost_objective)
    dumps = [[json.loads(tree) for tree in model.get_dump(dump_format="json")] for model in (theirs, ours)]
    assert len(dumps[0]) == 10 * rounds
    assert splits(dumps[0]) == splits(dumps[1])
    margins = [model.predict(data, output_margin=True) for model in (theirs, ours)]
    np.testing.assert_allclose(margins[1], margins[0], rtol=0, atol=8 * rounds * np.finfo(np.float32).eps)
    np.testing.assert_allclose(ours.predict(data), theirs.predict(data), rtol=1e-5)


def test_lightgbm(recipe, digits):
    """The trees of multiclass, and the same scores to float32's rounding of the gradients."""
    lightgbm = pytest.importorskip("lightgbm")
    pixels, labels, weights = digits
    data = lightgbm.Dataset(pixels, labels, weight=weights)
    rounds = 10
    # A start at 0: by default LightGBM starts its own objective at the classes' frequencies.
    parameters = {"num_class": 10, "num_leaves": 8, "boost_from_average": False, "verbose": -1}
    parameters |= {"deterministic": True, "force_row_wise": True, "num_threads": 1}
    theirs = lightgbm.train(parameters | {"objective": "multiclass"}, data, rounds)
    ours = lightgbm.train(parameters | {"objective": recipe("boosting").lightgbm_objective}, data, rounds)
    dumps = [[tree["tree_structure"] for tree in model.dump_model()["tree_info"]] for model in (theirs, ours)]
    assert len(dumps[0]) == 10 * rounds
    assert splits(dumps[0]) == splits(dumps[1])
    scores = [model.predict(pixels, raw_score=True) for model in (theirs, ours)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=rounds * np.finfo(np.float32).eps)


# ---- Mixtures ---------------------------------------------------------------------------


def test_gaussian_mixture(recipe):
    """Iteration for iteration the parameters of scikit-learn's GaussianMixture."""
    mixture = pytest.importorskip("sklearn.mixture")
    from sklearn.exceptions import ConvergenceWarning

    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(centre, 1, (300, 4)) for centre in (0, 2, 5)])
    weights, means, variances = np.array([0.2, 0.3, 0.5]), rng.choice(x, 3), rng.uniform(0.5, 2, (3, 4))
    iterations = 15
    model = mixture.GaussianMixture(
        3, covariance_type="diag", tol=0, max_iter=iterations, weights_init=weights, means_init=means,
        precisions_init=1 / variances,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # tol=0: every iteration is made
        model.fit(x)
    fitted = recipe("mixture").fit(x, weights, means, variances, iterations)
    expected = model.weights_, model.means_, model.covariances_, model.lower_bound_
    for ours, theirs in zip(fitted, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


# ---- Hidden Markov models ---------------------------------------------------------------


@pytest.fixture
def chain():
    """Start, transitions and emissions of 3 states that show 4 symbols, and 5 sequences of 40."""
    rng = np.random.default_rng(0)
    start, transition, emission = (rng.dirichlet(np.full(n, 0.5), shape) for n, shape in ((3, ()), (3, 3), (4, 3)))
    return start, transition, emission, rng.integers(0, 4, (5, 40))


def forward(recipe, start, transition, emission, seen):
    log_likelihood = recipe("hidden_markov").log_likelihood
    return log_likelihood(np.log(start), np.log(transition), np.log(emission).T[seen])


def test_forward_is_exact(recipe, chain):
    """The sum over paths in 200 bits: each step's roundings are those of 2 ULP and the logarithms."""
    start, transition, emission, seen = chain
    exact = []
    for sequence in seen:
        state = [mpmath.mpf(p) * mpmath.mpf(emission[i, sequence[0]]) for i, p in enumerate(start)]
        for symbol in sequence[1:]:
            state = [
                sum(state[i] * mpmath.mpf(transition[i, j]) for i in range(3)) * mpmath.mpf(emission[j, symbol])
                for j in range(3)
            ]
        exact.append(float(mpmath.log(sum(state))))
    found = forward(recipe, *chain)
    # Below each step's magnitude, that of the result at most, there are five roundings of 2 ULP.
    bound = 10 * seen.shape[1] * np.finfo(float).eps * np.abs(exact)
    assert np.all(np.abs(found - exact) <= bound)


def test_forward_of_hmmlearn(recipe, chain):
    hmm = pytest.importorskip("hmmlearn.hmm")
    start, transition, emission, seen = chain
    model = hmm.CategoricalHMM(3, n_features=4)
    model.startprob_, model.transmat_, model.emissionprob_ = start, transition, emission
    expected = [model.score(sequence[:, np.newaxis]) for sequence in seen]
    np.testing.assert_allclose(forward(recipe, *chain), expected, rtol=1e-13)


# ---- Language models --------------------------------------------------------------------


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 4, (20, 128_256)).astype(np.float32)


@pytest.mark.skipif(not oracle.WIDE_ENOUGH, reason="long double is no wider than double here")
def test_scores(recipe, logits):
    tokens = np.random.default_rng(1).integers(0, logits.shape[1], len(logits))
    scores = recipe("language_model").score(logits, tokens)
    exact = np.take_along_axis(oracle.rows(logits).log_softmax, tokens[:, np.newaxis], axis=1)[:, 0]
    eps = np.finfo(np.float32).eps
    assert np.all(np.abs(scores - exact) <= 2 * eps * np.abs(exact))
    # NumPy's shift rounds to an eps of the distance, and its sum in pairs to some of its own.
    np.testing.assert_allclose(recipe("language_model").score_numpy(logits, tokens), exact, rtol=10 * eps)


def test_samples(recipe, logits):
    language_model = recipe("language_model")
    generators = [np.random.default_rng(2), np.random.default_rng(2)]
    ours = language_model.sample(logits, 0.8, 0.95, generators[0])
    np.testing.assert_array_equal(ours, language_model.sample_numpy(logits, 0.8, 0.95, generators[1]))
    out = logits.copy()
    language_model.sample(out, 0.8, 0.95, generators[0], out=out)
    np.testing.assert_allclose(out.sum(axis=1, dtype=np.float64), 1, rtol=1e-6)


def test_sample_of_equal_logits(recipe):
    """Each probability may be rounded to less than 1 / n."""
    for logit in np.linspace(-3, 3, 20, dtype=np.float32):
        tokens = recipe("language_model").sample(np.full((3, 4), logit), 1.0, 1e-9, np.random.default_rng(0))
        assert np.all((tokens >= 0) & (tokens < 4))


@pytest.mark.parametrize("top_p", [0.3, 0.7, 1.0])
def test_top_p_frequencies(recipe, top_p):
    """The tokens of a full sort, as often as their probabilities say to five standard deviations."""
    p = np.array([0.05, 0.4, 0.15, 0.25, 0.1, 0.05])
    order = np.argsort(-p, kind="stable")
    kept = order[np.cumsum(p[order]) - p[order] < top_p - 1e-9]
    expected = np.zeros(6)
    expected[kept] = p[kept] / p[kept].sum()
    draws = 20_000
    tokens = recipe("language_model").sample_top_p(np.broadcast_to(p, (draws, 6)), top_p, np.random.default_rng(3))
    found = np.bincount(tokens, minlength=6) / draws
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws))
