"""CuPy's part of the demo: the same network as NumPy's, with the same numbers."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.app.demo.runs import Plan


def problem():
    rng = np.random.default_rng(0)
    sizes = [(5, 4), (4, 3)]
    start = {f"layer{i}": {"weight": rng.standard_normal(s), "bias": np.zeros(s[1])} for i, s in enumerate(sizes)}
    return start, (rng.standard_normal((12, 5)), rng.integers(0, 3, 12))


def test_it_trains_as_numpy_does(ops):
    from linop_gn_cupy.demo import participant
    from linop_gn_numpy.demo import participant as reference

    start, data = problem()
    found = {}
    for who in (participant, reference):
        params = who.params(start)
        assert lg.backend_of(params) is who.backend
        fit = lg.minimize(who.objective(data, start), params, max_steps=4)
        found[who.backend.name] = who.weights(fit.params)
    for name, layer in found["numpy"].items():
        for leaf, values in layer.items():
            assert type(found["cupy"][name][leaf]) is np.ndarray
            np.testing.assert_allclose(found["cupy"][name][leaf], values, rtol=1e-8, atol=1e-10)


def test_it_has_no_first_order_methods(ops):
    from linop_gn_cupy.demo import participant

    assert not participant.optimizers
    with pytest.raises(NotImplementedError, match="by Levenberg-Marquardt alone"):
        participant.train(Plan("SGD", 0.1, None, 1), *problem())
