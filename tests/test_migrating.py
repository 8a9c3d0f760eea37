"""The tables of docs/migrating.md: both sides of a line are the same."""

import re
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax as fsm

PAGE = Path(__file__).parent.parent / "docs" / "migrating.md"
LINES = re.findall(r"^\| `(.*?)` \| `(fsm\..*?)` \|$", PAGE.read_text(), re.M)


def test_ten_lines():
    assert len(LINES) == 10


@pytest.mark.parametrize(("theirs", "ours"), LINES, ids=[ours for _, ours in LINES])
def test_line(theirs, ours):
    x = np.random.default_rng(0).normal(size=(4, 3))
    names = {"np": np, "fsm": fsm, "x": x, "y": np.array([2, 0, 1, 1]), "p": fsm.reference.softmax(x)}
    names["m"] = x.max(-1, keepdims=True)
    if "torch" in theirs or "F." in theirs:
        torch = pytest.importorskip("torch")
        names |= {"torch": torch, "F": torch.nn.functional, "t": torch.tensor(x, requires_grad=True)}
        names |= {"labels": torch.tensor(names["y"]), "index": torch.tensor([[0, 2], [1, 1], [2, 0], [0, 1]])}
    expected = eval(theirs, names)
    expected = expected.detach().numpy() if "t" in names else expected
    np.testing.assert_allclose(eval(ours, names), expected, rtol=1e-10)
