"""Train a multinomial logistic regression on scikit-learn's digits, the whole fit timed.

    python benchmarks/digits.py

The loss and its gradient come from `softmax_cross_entropy_value_and_grad`, once of fastsoftmax
and once of plain NumPy; SciPy's L-BFGS goes to the optimum. scikit-learn's own
LogisticRegression minimises the same function and must find the same one.
"""

import time

import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import fastsoftmax as fsm
from fastsoftmax import reference
from fastsoftmax._peers import PlainNumPy

#: Of the squared weights beside the mean loss. It makes the optimum unique.
PENALTY = 1e-3

#: For every contender alike: matrices this small do not repay a second BLAS thread, and on a
#: busy machine each of L-BFGS's many little products then waits for one.
BLAS_THREADS = 1


def load() -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1], shape (1797, 64), and the digits' values."""
    pixels, labels = load_digits(return_X_y=True)
    return pixels / 16, labels


def objective(flat, pixels, labels, functions) -> tuple[float, np.ndarray]:
    """The penalised mean loss of weights (64, 10) with biases (10,) below, and its gradient."""
    weights = flat.reshape(-1, 10)
    logits = pixels @ weights[:-1] + weights[-1]
    loss, slope = functions.softmax_cross_entropy_value_and_grad(logits, labels)
    gradient = np.vstack([pixels.T @ slope + PENALTY * weights[:-1], slope.sum(0)])
    return loss + PENALTY / 2 * np.sum(weights[:-1] ** 2), gradient.ravel()


def fit(pixels, labels, functions=fsm) -> np.ndarray:
    """The optimal weights and biases, shape (65, 10)."""
    start = np.zeros(65 * 10)
    options = {"gtol": 1e-6, "ftol": 0, "maxiter": 5000, "maxfun": 10_000, "maxcor": 30}
    with threadpool_limits(BLAS_THREADS, "blas"):
        found = minimize(objective, start, (pixels, labels, functions), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(65, 10)


def gradient_size(weights, pixels, labels) -> float:
    """The largest slope left, by the reference: how far from the optimum a fit stopped."""
    return float(np.abs(objective(weights.ravel(), pixels, labels, reference)[1]).max())


def fit_scikit_learn(pixels, labels) -> np.ndarray:
    """The same optimum by scikit-learn, which counts the penalty against the summed loss."""
    model = LogisticRegression(C=1 / (PENALTY * len(labels)), tol=1e-6, max_iter=5000)
    with threadpool_limits(BLAS_THREADS, "blas"):
        model.fit(pixels, labels)
    return np.vstack([model.coef_.T, model.intercept_])


def main() -> None:
    pixels, labels = load()
    fits = {
        "fastsoftmax": lambda: fit(pixels, labels, fsm),
        "NumPy": lambda: fit(pixels, labels, PlainNumPy),
        "scikit-learn": lambda: fit_scikit_learn(pixels, labels),
    }
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    weights = {}
    for _ in range(5):
        for name, run in fits.items():
            started = time.perf_counter()
            weights[name] = run()
            seconds[name].append(time.perf_counter() - started)
    best = min(seconds["fastsoftmax"])
    for name, found in weights.items():
        # Shifting every class's weights alike changes no probability.
        centred = found - found.mean(1, keepdims=True)
        ours = weights["fastsoftmax"] - weights["fastsoftmax"].mean(1, keepdims=True)
        value, _ = objective(found.ravel(), pixels, labels, reference)
        print(
            f"{name:16} {min(seconds[name]) * 1e3:7.1f} ms  {min(seconds[name]) / best:5.2f}x"
            f"  objective {value:.12f}  largest slope {gradient_size(found, pixels, labels):.1e}"
            f"  furthest weight from ours {np.abs(centred - ours).max():.1e}"
        )
        if not np.allclose(centred, ours, atol=2e-3):
            raise SystemExit(f"{name} found another optimum")


if __name__ == "__main__":
    main()
