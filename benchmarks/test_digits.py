"""A whole fit of the digits by fastsoftmax and by the pure-NumPy reference."""

import digits
import pytest

import fastsoftmax as fsm
from fastsoftmax import reference


@pytest.mark.parametrize("module", [fsm, reference], ids=["fastsoftmax", "NumPy"])
def test_fit(benchmark, module):
    benchmark.group = "logistic regression on the digits, L-BFGS to the optimum"
    pixels, labels = digits.load()
    fitted = benchmark.pedantic(digits.fit, (pixels, labels, module), rounds=3, warmup_rounds=1)
    assert digits.gradient_size(fitted, pixels, labels) < 1e-5
