"""The main job, `python -m fastsoftmax`: its exit status, and the figures that it writes. Its times are not judged."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import fastsoftmax as fsm
from fastsoftmax import __main__ as main_job
from fastsoftmax import _check, _peers
from fastsoftmax.__main__ import main

SHORT = ["--shapes", "ten", "--functions", "softmax", "--peers", "--seconds", "0.01"]
WITHOUT_CHECK = [*SHORT, "--no-check", "--plain"]


@pytest.fixture
def run(monkeypatch, threads):  # the job sets the number of threads, which `threads` takes back
    """A function that runs the job in this process, its check on a few short rows, and returns the exit status."""
    check, few = _check.check, {"families": ("deviation 4", "one dominating"), "lengths": (2, 33), "elements": 100}
    monkeypatch.setattr(_check, "check", lambda **given: check(**{**given, **few}))

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["fastsoftmax", *options])
        return main()

    return run


@pytest.mark.parametrize("screen", [[], ["--plain"]], ids=["as installed", "plain"])
def test_figures(screen, run, tmp_path, capsys):
    assert run(*SHORT, *screen, "--json", str(tmp_path / "figures.json")) == 0
    assert "All good" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["configuration"]["version"] == fsm.__version__
    assert {outcome["function"] for outcome in figures["check"]} == set(_check.FUNCTIONS)
    assert {outcome["isa"] for outcome in figures["check"]} == set(_check.instruction_sets())
    assert all(outcome["ulps"] <= _check.BOUND for outcome in figures["check"])
    assert [record["contender"] for record in figures["times"]] == [_peers.OURS, _peers.BASELINE]
    assert all(record["best"] > 0 for record in figures["times"])


def test_errors_beyond_the_bound(run, monkeypatch, capsys):
    monkeypatch.setattr(_check, "BOUND", 0.0)
    assert run(*SHORT, "--plain") == 1
    shown = capsys.readouterr().out
    assert "Out of bounds" in shown
    assert "FAILED" in shown


def test_wrong_results_in_what_is_timed(run, monkeypatch, capsys):
    monkeypatch.setattr(fsm, "softmax", lambda x, axis, out=None: np.zeros_like(x))
    assert run(*WITHOUT_CHECK) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "status"), [(WITHOUT_CHECK, 0), (["--shapes", "none"], 2)])
def test_exit_status_of_the_process(options, status):
    done = subprocess.run([sys.executable, "-m", "fastsoftmax", *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr


GOOD = _check.Outcome("softmax", "float32", "scalar", "deviation 1", 10, 0, 0.5, 1)


@pytest.fixture
def report(monkeypatch, capsys):
    """A function that runs the job with these outcomes of its check and no work; its status and what it printed."""

    def report(*arguments, outcomes=()):
        monkeypatch.setattr(sys, "argv", ["fastsoftmax", "--plain", *arguments])
        monkeypatch.setattr(main_job, "check_results", lambda screen: list(outcomes))
        monkeypatch.setattr(main_job, "compare_speeds", lambda screen, options: [])
        status = main()
        return status, capsys.readouterr().out

    return report


def test_other_bits_are_reported_as_such(report):
    first = _check.instruction_sets()[0]
    status, text = report(outcomes=[replace(GOOD, isa=first), replace(GOOD, isa="other", checksum=2)])
    assert status == 1
    assert f"Other bits than on {first}: Outcome(function='softmax'" in text
    assert "Out of bounds" not in text


def test_large_errors_are_reported_as_such(report):
    status, text = report(outcomes=[replace(GOOD, ulps=2.5)])
    assert status == 1
    assert "Out of bounds: Outcome(function='softmax'" in text
    assert "Other bits" not in text


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_seconds_must_be_positive(report, capsys, seconds):
    with pytest.raises(SystemExit):
        report("--seconds", seconds)
    assert "--seconds" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_fails_before_the_work(report, monkeypatch, capsys, tmp_path):
    def no_work(screen):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(main_job, "show_configuration", no_work)
    for path in (tmp_path, tmp_path / "missing" / "figures.json"):
        with pytest.raises(SystemExit):
            report("--json", str(path))
        assert "--json" in capsys.readouterr().err
