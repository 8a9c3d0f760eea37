"""Scores and samples from a language model's logits, and the same in plain NumPy."""

import numpy as np

import fastsoftmax as fsm


def score(logits, tokens):
    """The log-probability of one token a row; nothing of the size of the logits is made."""
    return fsm.selected_log_softmax(logits, tokens)


def score_numpy(logits, tokens):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=-1))
    return np.take_along_axis(shifted, tokens[:, np.newaxis], axis=-1)[:, 0] - log_sums


def sample(logits, temperature, top_p, rng, out=None):
    """A token for each row, from the most probable ones that together have probability `top_p`."""
    probabilities = fsm.softmax(logits, temperature=temperature, out=out)
    return sample_top_p(probabilities, top_p, rng)


def sample_numpy(logits, temperature, top_p, rng):
    scaled = logits / logits.dtype.type(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return sample_top_p(exponentials / exponentials.sum(axis=-1, keepdims=True), top_p, rng)


def sample_top_p(probabilities, top_p, rng):
    """A token for each row of probabilities."""
    tokens = np.empty(len(probabilities), np.intp)
    # Tokens below this have less than 1 - top_p together, so none of them is needed: few are left to sort.
    # (A little lower: equal probabilities may each be rounded to less than their share.)
    cutoff = 0.999 * (1 - top_p) / probabilities.shape[1]
    for row, p in enumerate(probabilities):
        candidates = np.flatnonzero(p >= cutoff)
        candidates = candidates[np.argsort(-p[candidates], kind="stable")]
        cumulative = np.cumsum(p[candidates], dtype=np.float64)
        kept = np.searchsorted(cumulative, top_p) + 1  # the last of them crosses top_p
        draw = rng.random() * cumulative[:kept][-1]
        tokens[row] = candidates[np.searchsorted(cumulative[:kept], draw, side="right")]
    return tokens
