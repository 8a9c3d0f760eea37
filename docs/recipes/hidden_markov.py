"""The likelihood of sequences under a hidden Markov model, in logarithms throughout."""

import fastsoftmax as fsm


def log_likelihood(log_start, log_transition, log_emission):
    """The forward pass, for many sequences of one length at once.

    Parameters
    ----------
    log_start : ndarray, shape (states,)
    log_transition : ndarray, shape (states, states)
        From the state of the row to that of the column.
    log_emission : ndarray, shape (sequences, steps, states)
        Of what is seen at each step, given each state.

    Returns
    -------
    ndarray, shape (sequences,)
    """
    forward = log_start + log_emission[:, 0]
    for step in range(1, log_emission.shape[1]):
        arrivals = forward[:, :, None] + log_transition
        forward = fsm.logsumexp(arrivals, axis=1) + log_emission[:, step]
    return fsm.logsumexp(forward)
