"""Multiclass objectives for `xgboost.train` and `lightgbm.train` that build the libraries' own models."""

import numpy as np

import fastsoftmax as fsm


def xgboost_objective(logits, data):
    """As XGBoost's ``multi:softprob``: twice the Hessian's diagonal, never below 1e-16."""
    weights = data.get_weight()
    return fsm.softmax_cross_entropy_grad_hess(
        logits,
        data.get_label().astype(np.intp),
        factor=2,
        min_hess=1e-16,
        sample_weight=weights if weights.size else None,
    )


def lightgbm_objective(logits, data):
    """As LightGBM's ``multiclass``: the Hessian's diagonal times n / (n - 1) for n classes."""
    classes = logits.shape[1]
    return fsm.softmax_cross_entropy_grad_hess(
        logits,
        data.get_label().astype(np.intp),
        factor=classes / (classes - 1),
        sample_weight=data.get_weight(),
    )
