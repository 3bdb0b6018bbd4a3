"""Copies and pickles of what is returned: no linearisation in them, and the same answers."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from systems import FULL, spare

import linop_gn as lg
from linop_gn.testing.strategies import array

X = np.linspace(-1.0, 1.0, 12).reshape(6, 2)


def model(p, x):
    return lg.namespace(x).tanh(x @ p)


def jacobian(p, x):
    return ((1 - np.tanh(x @ p) ** 2)[:, None] * x)[:, None, :]


def flat(p, x):
    return model(p, x)[:, None]


@pytest.fixture(params=["numpy", "torch", "jax"])
def fit(request):
    """An objective and parameters."""
    pytest.importorskip(request.param)
    ops = lg.load(request.param)
    data, p = (array(ops, X, "float32"), array(ops, np.ones((6, 1)), "float32")), array(ops, [0.3, -0.2], "float32")
    supplied = {"jacobian": jacobian} if ops.calculus is None else {}
    return lg.Objective(flat, lg.losses.SquaredError(), data, **supplied), p


def ways(thing):
    return copy.copy(thing), copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))


def host(x):
    return np.asarray(lg.backend_of(x).to_numpy(x))


def test_spaces_and_operators(fit):
    objective, p = fit
    G, K = lg.GGN(objective, p), lg.Gram(objective, p)
    space = lg.krylov(G, objective.gradient(p), 1)
    v = K.codomain.zeros() + 1.0
    if G.backend.name == "jax" and not FULL:
        assert pickle.loads(pickle.dumps(space)).steps == copy.deepcopy(space).steps == 1
        return
    for made in ways(space):
        np.testing.assert_array_equal(host(made.solve(1.0).x), host(space.solve(1.0).x))
        np.testing.assert_allclose(host(made.extend(1).solve(1.0).x), host(space.extend(1).solve(1.0).x), rtol=1e-5)
    for made in ways(K):
        np.testing.assert_allclose(host(made @ v), host(K @ v), rtol=1e-5)
    if G.backend.name != "numpy":
        with pytest.raises(TypeError, match=r"cannot be pickled: pickle the operator as it was made"):
            pickle.dumps(G.prepare().pieces[0].linearization)


def test_a_space_that_is_kept_keeps_no_linearisation(fit):
    objective, p = fit
    G = lg.GGN(objective, p)
    spare(G.backend, FULL)
    space = lg.krylov(G, objective.gradient(p), 2)
    held = weakref.ref(G.prepare())
    more = space.extend(1)  # by the linearisation that there is
    assert lg.records.memo(more).prepared() is held() is not None
    del G
    gc.collect()
    assert held() is None
    assert int(more.extend(1).steps) == int(more.steps)  # of two unknowns


@pytest.mark.parametrize("method", [lg.LevenbergMarquardt(damping=1.0), lg.methods.LeastSquares()], ids=["LM", "LS"])
def test_results_go_on(fit, method, tmp_path):
    objective, p = fit
    spare(lg.backend_of(p), FULL)
    half, whole = (lg.minimize(objective, p, method, max_steps=n) for n in (2, 3))
    for made in ways(half):
        np.testing.assert_array_equal(host(made.params), host(half.params))
        np.testing.assert_array_equal(host(made.state.params), host(half.params))
        lg.save_state(tmp_path / "state", made.state)
        for state in (made.state, lg.load_state(tmp_path / "state", method, objective, p)):
            more = lg.minimize(objective, None, method, state=state, max_steps=1)
            np.testing.assert_allclose(host(more.params), host(whole.params), rtol=1e-4)


def test_plain_arrays_are_read_by_torch_as_it_is(torch, tmp_path):
    solution = lg.solve(lg.Diagonal(torch.tensor([1.0, 2.0])), torch.ones(2))
    torch.save(solution.x, tmp_path / "x")
    assert torch.equal(torch.load(tmp_path / "x", weights_only=True), solution.x)
