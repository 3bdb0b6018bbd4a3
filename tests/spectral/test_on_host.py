"""A basis in the host's memory: the same pairs, and no more on the device than a product needs."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array

N = 300
D = np.concatenate([[1.5, 1.5], np.random.default_rng(0).uniform(-1, 1, N - 2)])


def test_pairs_are_those_of_a_basis_on_the_device(backend):
    A = lg.Diagonal(array(backend, D), psd=False)
    there = lg.eigsh(A, 3, "LM", block=2, basis_on="host")
    here = lg.eigsh(lg.Diagonal(D, psd=False), 3, "LM", block=2)
    assert there.succeeded
    assert there.products == here.products
    assert isinstance(there.columns, np.ndarray)
    np.testing.assert_allclose(there.values, here.values, rtol=1e-12)
    np.testing.assert_allclose(there.bounds, here.bounds, atol=1e-12)
    residuals = np.linalg.norm(D[:, None] * there.columns - there.columns * there.values, axis=0)
    assert (residuals <= there.bounds).all()
    assert backend.is_array(there.vector(1))
    np.testing.assert_allclose(backend.to_numpy(there.vectors), there.columns)
    assert backend.to_numpy(there.vector(1)).tolist() == there.columns[:, 1].tolist()


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_the_device_holds_no_basis(name, monkeypatch, request):
    request.getfixturevalue(name)
    ops, sent = lg.load(name), []
    send = ops.asarray

    def asarray(host, dtype, device=None):
        sent.append(np.size(host))
        return send(host, dtype, device)

    A = lg.Diagonal(array(ops, D, "float32"), psd=False)
    for operation in ("basis", "store", "combine", "project", "deflate"):
        monkeypatch.setattr(ops, operation, None)
    monkeypatch.setattr(ops, "asarray", asarray)
    found = lg.eigsh(A, 4, basis=40, basis_on="host")
    assert found.succeeded
    assert max(sent) == N
    assert len(sent) == found.products + 1  # to see whether a program is being compiled


def test_while_it_runs_jax_has_the_operator_and_a_vector(jax):
    A = lg.Diagonal(jax.numpy.asarray(D, "float32"), psd=False)
    before, most = {id(x) for x in jax.live_arrays()}, []

    def look(look):
        most.append(sum(x.size for x in jax.live_arrays() if id(x) not in before))

    lg.eigsh(A, 4, basis=40, basis_on="host", watch=[look])
    assert len(most) > 40
    assert max(most) <= 2 * N


def test_trees_starts_and_limits(torch):
    params = {"b": torch.zeros(2, dtype=torch.float64), "w": torch.zeros(3, 2, dtype=torch.float64)}
    fit = lg.Objective(
        lambda p, x: x @ p["w"] + p["b"], lg.losses.SquaredError(), (torch.eye(3).double(), torch.ones(3, 2).double())
    )
    G = lg.GGN(fit, params)
    top = lg.eigsh(G, 2, block=2, basis_on="host", start=params | {"b": torch.ones(2).double()})
    y = top.vector(0)
    assert y["w"].shape == (3, 2)
    assert top.vectors["w"].shape == (3, 2, 2)
    torch.testing.assert_close((G @ y)["w"], float(top.values[0]) * y["w"])
    few = lg.eigsh(lg.Diagonal(torch.linspace(0, 1, 500)), 4, "SA", max_products=30, basis_on="host")
    assert few.status is Status.MAX_STEPS
    assert few.products == 30


def test_refusals_say_what_to_do(torch, jax):
    d = jax.numpy.ones(9)
    with pytest.raises(TypeError, match="inside of a compiled program"):
        jax.jit(lambda d: lg.eigsh(lg.Diagonal(d), 1, basis_on="host").values)(d)
    with pytest.raises(TypeError, match="inside of a compiled program"):
        jax.jit(lambda s: s * lg.eigsh(lg.Diagonal(d), 1, basis_on="host").values)(2.0)
    with pytest.raises(ValueError, match='"device" or "host"'):
        lg.eigsh(lg.Diagonal(np.ones(4)), 1, basis_on="disk")
    with pytest.raises(TypeError, match="NumPy has no bfloat16"):
        lg.eigsh(lg.Diagonal(torch.ones(30, dtype=torch.bfloat16)), 1, basis_on="host")
