"""What the recipes of docs/recipes gain as a whole: fits and samples, not single calls.

    python benchmarks/recipes.py | tee docs/recipes/times.txt

Every recipe is timed with fastsoftmax, with plain NumPy in its place, and beside the package that
does the same by itself. What is not installed is left out and named.
"""

import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

import fastsoftmax as fsm
from fastsoftmax._peers import PlainNumPy
from fastsoftmax._timing import Call, describe_machine, measure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs" / "recipes"))
import boosting
import hidden_markov
import language_model
import mixture

PACKAGES = ("xgboost", "lightgbm", "scikit-learn", "hmmlearn")


def with_numpy(module, call: Call) -> Call:
    """The same call of a recipe, plain NumPy in the place of fastsoftmax."""

    def patched():
        with mock.patch.object(module, "fsm", PlainNumPy):
            return call()

    return patched


def classes_apart(rows: int, features: int, classes: int):
    """Overlapping classes, and the label of each row."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=rows)
    return rng.normal(0, 1, (classes, features))[labels] + rng.normal(0, 1.5, (rows, features)), labels


def xgboost_fit() -> tuple[str, dict[str, Call]]:
    xgboost = importlib.import_module("xgboost")
    x, labels = classes_apart(50_000, 20, 20)
    data = xgboost.QuantileDMatrix(x, labels)
    parameters = {"num_class": 20, "base_score": 0.5, "objective": "multi:softprob", "nthread": fsm.get_num_threads()}

    def ours():
        return xgboost.train(parameters, data, 10, obj=boosting.xgboost_objective)

    contenders = {
        "fastsoftmax": ours,
        "NumPy": with_numpy(boosting, ours),
        "XGBoost": lambda: xgboost.train(parameters, data, 10),
    }
    return "XGBoost: 50,000 rows, 20 features, 20 classes, 10 rounds", contenders


def lightgbm_fit() -> tuple[str, dict[str, Call]]:
    lightgbm = importlib.import_module("lightgbm")
    x, labels = classes_apart(50_000, 20, 20)
    data = lightgbm.Dataset(x, labels).construct()
    parameters = {"num_class": 20, "boost_from_average": False, "verbose": -1, "num_threads": fsm.get_num_threads()}

    def train(objective):
        return lightgbm.train(parameters | {"objective": objective}, data, 10)

    def ours():
        return train(boosting.lightgbm_objective)

    contenders = {
        "fastsoftmax": ours,
        "NumPy": with_numpy(boosting, ours),
        "LightGBM": lambda: train("multiclass"),
    }
    return "LightGBM: 50,000 rows, 20 features, 20 classes, 10 rounds", contenders


def mixture_fit() -> tuple[str, dict[str, Call]]:
    sklearn_mixture = importlib.import_module("sklearn.mixture")
    x, _ = classes_apart(100_000, 8, 16)
    start = np.full(16, 1 / 16), x[:16], np.ones((16, 8))
    weights, means, variances = start

    def ours():
        *parameters, _ = mixture.fit(x, *start, iterations=10)
        # scikit-learn's fit ends with one more E step, for the labels: so do these, each having made 10 M
        # steps and 11 E steps. Of the last only the logarithms are taken. (mixture's fsm may be NumPy's.)
        log_shares = mixture.log_joint(x, *parameters)
        log_shares -= mixture.fsm.logsumexp(log_shares)[:, np.newaxis]
        return log_shares.argmax(axis=1)

    def scikit_learn():
        model = sklearn_mixture.GaussianMixture(
            16, covariance_type="diag", tol=0, max_iter=10, weights_init=weights, means_init=means,
            precisions_init=1 / variances,
        )  # fmt: skip
        return model.fit_predict(x)

    contenders = {"fastsoftmax": ours, "NumPy": with_numpy(mixture, ours), "scikit-learn": scikit_learn}
    return "Gaussian mixture: 100,000 points, 8 features, 16 components, 10 iterations, labels", contenders


def forward_pass() -> tuple[str, dict[str, Call]]:
    hmm = importlib.import_module("hmmlearn.hmm")
    rng = np.random.default_rng(0)
    states, symbols, sequences, steps = 16, 32, 500, 200
    model = hmm.CategoricalHMM(states, n_features=symbols, implementation="log")
    model.startprob_ = rng.dirichlet(np.ones(states))
    model.transmat_ = rng.dirichlet(np.ones(states), states)
    model.emissionprob_ = rng.dirichlet(np.ones(symbols), states)
    seen = rng.integers(symbols, size=(sequences, steps))

    def ours():
        emissions = np.log(model.emissionprob_).T[seen]
        return hidden_markov.log_likelihood(np.log(model.startprob_), np.log(model.transmat_), emissions)

    contenders = {
        "fastsoftmax": ours,
        "NumPy": with_numpy(hidden_markov, ours),
        "hmmlearn": lambda: model.score(seen.reshape(-1, 1), [steps] * sequences),
    }
    return f"HMM forward pass: {sequences} sequences of {steps} steps, {states} states", contenders


def token_logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 4, (20, 128_256)).astype(np.float32)


def scores() -> tuple[str, dict[str, Call]]:
    logits = token_logits()
    tokens = np.random.default_rng(1).integers(logits.shape[1], size=len(logits))
    contenders = {
        "fastsoftmax": lambda: language_model.score(logits, tokens),
        "NumPy": lambda: language_model.score_numpy(logits, tokens),
    }
    return "Scores of 20 tokens of 128,256", contenders


def samples() -> tuple[str, dict[str, Call]]:
    logits = token_logits()
    out = np.empty_like(logits)
    contenders = {
        "fastsoftmax": lambda: language_model.sample(logits, 0.8, 0.95, np.random.default_rng(2), out=out),
        "NumPy": lambda: language_model.sample_numpy(logits, 0.8, 0.95, np.random.default_rng(2)),
    }
    return "Samples of 20 tokens of 128,256: temperature 0.8, top-p 0.95", contenders


RECIPES: list[Callable[[], tuple[str, dict[str, Call]]]] = [
    xgboost_fit, lightgbm_fit, mixture_fit, forward_pass, scores, samples,
]  # fmt: skip


def describe() -> str:
    machine = describe_machine() | {"threads": str(fsm.get_num_threads())}
    for package in PACKAGES:
        # XGBoost without a GPU goes by another name.
        for name in (package, f"{package}-cpu"):
            try:
                machine[package] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def main() -> None:
    warnings.simplefilter("ignore")  # scikit-learn's, of iterations that stop before they converge
    print(describe())
    for recipe in RECIPES:
        try:
            title, contenders = recipe()
        except ImportError as error:
            print(f"\nleft out: {recipe.__name__} needs {error.name}", flush=True)
            continue
        times = measure(contenders, seconds=2, rounds=5)
        print(f"\n{title}")
        for name, time in times.items():
            print(f"  {name:13} {time.best * 1e3:9.2f} ms  {time.best / times['fastsoftmax'].best:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
