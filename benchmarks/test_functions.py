"""Each named case by fastsoftmax, by its reference and by plain NumPy, side by side.

pytest benchmarks --benchmark-only
"""

import pytest
from cases import NAMED

from fastsoftmax._peers import BASELINE, OURS, REFERENCE, load, prepare_checked


@pytest.fixture(scope="session")
def adapters():
    import fastsoftmax as fsm

    return load((OURS, BASELINE, REFERENCE), fsm.get_num_threads())[0]


@pytest.mark.parametrize("contender", [OURS, BASELINE, REFERENCE])
@pytest.mark.parametrize("name", NAMED)
def test_function(benchmark, adapters, name, contender):
    benchmark.group = name
    calls, wrong = prepare_checked({contender: adapters[contender]}, NAMED[name].make())
    assert not wrong
    benchmark(calls[contender])
