"""What runs say to logging, and that they look no more often than before where nobody listens."""

import logging

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.run import log

LINE = lg.Objective.from_residuals(lambda p: p**2 - 2.0, jacobian=lambda p: np.diag(2 * p))


def test_a_run_says_that_it_begins_where_it_is_and_how_it_ended(caplog, monkeypatch):
    with caplog.at_level(logging.INFO, "linop_gn"):
        lg.minimize(LINE, np.ones(2), lg.LevenbergMarquardt(), max_steps=2)
        begins, ends = caplog.records
        assert begins.getMessage() == "LevenbergMarquardt begins at step 0, at most 2 steps"
        assert (begins.name, begins.levelname, ends.levelname) == ("linop_gn.minimize", "INFO", "WARNING")
        assert ends.getMessage().startswith("LevenbergMarquardt: max_steps at step 2 after ")
        assert ends.getMessage().endswith(lg.Status.MAX_STEPS.sentence)
        caplog.clear()
        monkeypatch.setattr(log, "PAUSE", 0.0)  # every look is due
        fit = lg.least_squares(lambda p: p**2 - 2.0, [1.0], watch=[lg.stop_when(lambda look: look.step == 3)])
        assert fit.status is lg.Status.STOPPED
        assert [record.levelname for record in caplog.records] == ["INFO"] * 6  # it begins, steps 0 to 3, it ended
        assert caplog.records[-1].name == "linop_gn.least_squares"
        assert "stopped at step 3" in caplog.text
        with pytest.raises(ZeroDivisionError):
            lg.minimize(LINE, np.ones(2), lg.LevenbergMarquardt(), watch=[lambda look: 1 / (1 - look.step) < 0])
        assert "stopped at step 1" in caplog.text


def test_nothing_is_said_or_looked_at_where_nobody_listens(capsys, monkeypatch):
    monkeypatch.setattr(log.Logged, "__init__", None)
    lg.minimize(LINE, np.ones(2), lg.LevenbergMarquardt(), max_steps=2)
    assert capsys.readouterr() == ("", "")
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("linop_gn").handlers)
