"""A mixture of Gaussians with diagonal covariances, fitted by expectation-maximisation."""

import numpy as np

import fastsoftmax as fsm


def log_joint(x, weights, means, variances):
    """``log(weight[k] * density[k](x[i]))``, shape (points, components)."""
    precisions = 1 / variances
    distances = x**2 @ precisions.T - 2 * x @ (means * precisions).T + np.sum(means**2 * precisions, axis=1)
    return np.log(weights) - 0.5 * (np.sum(np.log(2 * np.pi * variances), axis=1) + distances)


def fit(x, weights, means, variances, iterations, floor=1e-6):
    """The parameters after so many iterations, and the mean log-likelihood before the last of them."""
    for _ in range(iterations):
        joint = log_joint(x, weights, means, variances)
        log_likelihood = np.mean(fsm.logsumexp(joint))
        shares = fsm.softmax(joint, out=joint)
        counts = shares.sum(axis=0)
        weights = counts / len(x)
        means = shares.T @ x / counts[:, np.newaxis]
        variances = shares.T @ x**2 / counts[:, np.newaxis] - means**2 + floor
    return weights, means, variances, log_likelihood
