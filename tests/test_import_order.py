"""Other libraries with threads of their own, imported before and after this one, each at work in turn."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest

# Each leaves work(), which runs on two threads and checks its result.
LIBRARIES = {
    "torch": """
        import torch
        torch.set_num_threads(2)
        def work():
            y = torch.softmax(torch.from_numpy(x), dim=1)
            np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4)
    """,
    "sklearn": """
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
        def work():
            points = np.concatenate([np.zeros((5000, 3)), np.ones((5000, 3))])
            with threadpool_limits(2, user_api="openmp"):
                labels = KMeans(2, n_init=1, random_state=0).fit(points).labels_
            assert np.all(labels[:5000] == labels[0]) and np.all(labels[5000:] != labels[0])
    """,
    "numexpr": """
        import numexpr
        numexpr.set_num_threads(2)
        def work():
            np.testing.assert_array_equal(numexpr.evaluate("2 * x + 1"), 2 * x + 1)
    """,
}

OURS = """
    import fastsoftmax as fsm
    fsm.set_num_threads(2)
"""

DATA = """
    import numpy as np
    x = np.random.default_rng(0).normal(size=(500, 1000)).astype(np.float32)
    expected = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
"""

IN_TURN = """
    for _ in range(10):
        work()
        np.testing.assert_allclose(fsm.softmax(x), expected, rtol=1e-4)
"""


@pytest.mark.parametrize("ours_first", [True, False], ids=["fastsoftmax first", "fastsoftmax last"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_import_order(library, ours_first):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    imports = [OURS, LIBRARIES[library]] if ours_first else [LIBRARIES[library], OURS]
    script = "".join(map(textwrap.dedent, [*imports[:1], DATA, *imports[1:], IN_TURN]))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_all_together():
    """In the order of the table, then this library, then all at work."""
    found = [library for library in LIBRARIES if importlib.util.find_spec(library)]
    if len(found) < 2:
        pytest.skip(f"of {', '.join(LIBRARIES)} fewer than two are installed")
    parts = [DATA]
    for library in found:
        parts += [LIBRARIES[library], f"work_{library} = work\n"]
    together = "def work():\n" + "".join(f"    work_{library}()\n" for library in found)
    script = "".join(map(textwrap.dedent, [*parts, OURS, together, IN_TURN]))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
