"""A whole fit of the digits by fastsoftmax and by plain NumPy."""

import digits
import pytest

import fastsoftmax as fsm
from fastsoftmax._peers import PlainNumPy


@pytest.mark.parametrize("functions", [fsm, PlainNumPy], ids=["fastsoftmax", "NumPy"])
def test_fit(benchmark, functions):
    benchmark.group = "logistic regression on the digits, L-BFGS to the optimum"
    pixels, labels = digits.load()
    fitted = benchmark.pedantic(digits.fit, (pixels, labels, functions), rounds=3, warmup_rounds=1)
    assert digits.gradient_size(fitted, pixels, labels) < 1e-5
