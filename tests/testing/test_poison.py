"""The backend that spoils what is consumed, and nothing else."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.testing import poison, poison_backend, poisoned


@pytest.mark.parametrize("name", ["scale", "axpy", "axpby", "subtract"])
def test_the_poisoning_backend_spoils_what_is_consumed_and_nothing_else(name):
    x, y = poison(np.ones(3)), poison(np.full(3, 2.0))
    call = {
        "scale": lambda: poison_backend.scale(3.0, y),
        "axpy": lambda: poison_backend.axpy(3.0, x, y),
        "axpby": lambda: poison_backend.axpby(3.0, x, 2.0, y),
        "subtract": lambda: poison_backend.subtract(x, y),
    }[name]
    expected = {"scale": 6.0, "axpy": 5.0, "axpby": 7.0, "subtract": -1.0}[name]
    result = call()
    assert result.tolist() == [expected] * 3
    assert np.isnan(y).all()
    assert x.tolist() == [1.0] * 3
    assert not np.shares_memory(result, y)


def test_whatever_makes_an_array_of_the_poisoning_backend_makes_one_that_can_be_spoilt():
    xp, x = poison_backend.namespace(), poison(np.arange(6.0).reshape(3, 2))
    made = [
        xp.asarray([1.0]), xp.zeros(3), xp.where(x > 1, x, x), xp.concat([x, x]), xp.stack([x, x]), x[0], x.T @ x,
        xp.linalg.qr(x)[0], xp.exp(x), poison_backend.copy(x), poison_backend.select(np.array([True, False]), x, x),
    ]  # fmt: skip
    for array_made in made:
        assert poison_backend.is_array(array_made)


def test_any_eager_backend_has_a_twin_that_spoils():
    twin, x, y = poisoned(lg.load("numpy")), np.ones(3), np.ones(3)
    assert twin.axpby(2.0, x, 3.0, y).tolist() == [5.0] * 3
    assert np.isnan(y).all()
    assert x.tolist() == [1.0] * 3
    assert lg.load("numpy").axpy(1.0, x, x.copy()).tolist() == [2.0] * 3
    assert poisoned(twin) is twin
