"""The README's table of mistakes: each call gives what its line says."""

import re
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax as fsm

README = Path(__file__).parent.parent / "README.md"
LINES = re.findall(r"^\| `(fsm\..*?)` \| `(.*?)` \|", README.read_text(), re.M)


def test_ten_lines():
    assert len(LINES) == 10


@pytest.mark.parametrize(("call", "seen"), LINES, ids=[call for call, _ in LINES])
def test_line(call, seen):
    names = {
        "np": np,
        "fsm": fsm,
        "logits": np.log([[1.0, 2.0, 5.0], [2.0, 2.0, 4.0]]),
        "labels": np.array([2, 0]),
        "mask": np.array([True, False]),
        "read_only": np.broadcast_to(0.0, (2, 3)),
    }
    if "torch" in call:
        names["torch"] = pytest.importorskip("torch")
    try:
        happens = repr(eval(call, names))
    except Exception as error:
        happens = f"{type(error).__name__}: {error}"
    assert happens == seen
