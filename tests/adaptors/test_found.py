"""Which backend serves a library: one whose framework is imported, with advice where there is none."""

import sys

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.adaptors.found import serving


def test_a_library_that_nobody_serves():
    with pytest.raises(ImportError, match="no framework that is imported has abacus"):
        serving("to_abacus")


@pytest.mark.parametrize("library", ["lineax", "optax"])
def test_a_library_that_is_not_installed(library, monkeypatch):
    jax = pytest.importorskip("jax")
    monkeypatch.delitem(sys.modules, f"linop_gn_jax.with_{library}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    doors = {
        "lineax": lambda: lg.to_lineax(lg.Dense(jax.numpy.eye(2))),
        "optax": lambda: lg.to_optax(lg.Objective.from_residuals(np.copy), lg.SGN()),
    }
    with pytest.raises(ImportError, match=f"pip install {library}"):
        doors[library]()
