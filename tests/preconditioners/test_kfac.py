"""K-FAC as a preconditioner: beside the dense inverse, at live dampings, inside methods."""

import numpy as np
import pytest
from kronecker import dense, made
from systems import FULL, spare

import linop_gn as lg

IN_CI_ON_JAX = ("test_it_is_the_inverse_at_the_live_damping", "test_methods_take_every_kind")

KFAC = lg.preconditioners.KFAC


@pytest.fixture(params=["torch", "jax"])
def ops(request):
    pytest.importorskip(request.param)
    if request.param == "jax":
        request.getfixturevalue("jax")
    return lg.load(request.param)


@pytest.mark.parametrize("options", [{}, {"corrected": True}, {"rule": "heuristic"}, {"fisher": "mc", "samples": 2}])
def test_it_is_the_inverse_at_the_live_damping(ops, options):
    if ops.name == "jax" and options:
        pytest.skip("the same code, compiled long")
    f, p = made(ops, "two layers")
    own = {name: value for name, value in options.items() if name in ("fisher", "samples")}
    K = (lg.EKFAC if "corrected" in options else lg.KFAC)(f, p, **own)
    recipe = KFAC(**options)
    G = lg.GGN(f, p)
    prepared = recipe.prepare(G)
    for damping in (1e-2, 1.0):
        for A in (lg.Damped(G, damping), lg.Damped(lg.Hessian(f, p), damping)):
            M = recipe.finish(prepared, A)
            want = dense(K.inverse(damping, options.get("rule", "exact")))
            np.testing.assert_allclose(dense(M), want, rtol=1e-8, atol=1e-10 * abs(want).max())
            assert M.psd
    np.testing.assert_allclose(dense(recipe(lg.Damped(G, 1.0))), dense(M), atol=1e-10)


def test_an_l2_is_part_of_the_damping(ops):
    f, p = made(ops, "two layers", l2=0.3)
    A = lg.Damped(lg.GGN(f, p), 0.2)
    np.testing.assert_allclose(dense(KFAC()(A)), dense(lg.KFAC(f, p).inverse(0.2)), atol=1e-10)


def test_a_system_with_kfac_itself_takes_one_step(ops):
    f, p = made(ops, "recurrent")
    A, b = lg.Damped(lg.KFAC(f, p), 1e-2), f.gradient(p)
    for operator in (A, lg.Damped(lg.KFAC(f, p).factors, 1e-2)):
        found = lg.solve(operator, b, lg.CG(rtol=1e-8, preconditioner=KFAC()))
        assert (found.status.name, int(found.steps)) == ("CONVERGED", 1)


def test_kfac_is_a_composition(ops):
    """Gauss-Newton with K-FAC for its curvature is p - (K + damping I)^-1 g, as written by hand."""
    f, p = made(ops, "two layers", n=12)
    method = lg.GaussNewton(curvature=lg.KFAC, damping=0.1, solver=lg.CG(rtol=1e-10, preconditioner=KFAC()))
    result = lg.minimize(f, p, method, max_steps=1)
    step = lg.KFAC(f, p).inverse(0.1) @ f.gradient(p)
    trial = {name: p[name] - step[name] for name in p}
    assert float(f.value(trial)) < float(f.value(p))  # so that the search takes it
    for name in p:
        np.testing.assert_allclose(ops.to_numpy(result.params[name]), ops.to_numpy(trial[name]), atol=1e-8)


def test_averages_of_factors_are_renewed_at_a_cadence(ops):
    f, p = made(ops, "two layers", n=12)
    recipe = KFAC(decay=0.75)
    q = {name: 1.1 * part for name, part in p.items()}
    first, second = lg.GGN(f, p), lg.GGN(f, q)
    renewed = recipe.renew(recipe.prepare(first), second)
    for old, new, mean in zip(
        lg.KFAC(f, p).factors.blocks, lg.KFAC(f, q).factors.blocks, renewed.factors.blocks, strict=True
    ):
        for side in ("left", "right"):
            a, b, c = (ops.to_numpy(getattr(block, side)) for block in (old, new, mean))
            np.testing.assert_allclose(c, 0.75 * a + 0.25 * b, atol=1e-12)
    descent = lg.descents.Solve(lg.CG(max_steps=5, preconditioner=recipe), every=2)
    result = lg.minimize(f, p, lg.SecondOrder(descent=descent, level=1e-2), max_steps=6)
    assert float(result.value) < float(f.value(p))


@pytest.mark.parametrize(
    ("curvature", "recipe"),
    [(lg.GGN, KFAC(corrected=True)), (lg.EKFAC, KFAC()), (lg.GGN, KFAC(decay=0.5))],
    ids=["corrected", "EKFAC", "averaged"],
)
def test_methods_take_every_kind(ops, curvature, recipe):
    spare(ops, FULL or curvature is lg.EKFAC)
    f, p = made(ops, "two layers", n=12)
    method = lg.LevenbergMarquardt(curvature, damping=1.0, solver=lg.CG(max_steps=5, preconditioner=recipe))
    assert float(lg.minimize(f, p, method, max_steps=3).value) < float(f.value(p))


@pytest.mark.parametrize("every", [1, 2])
def test_runs_are_saved_and_go_on(every, tmp_path):
    pytest.importorskip("torch")
    f, p = made(lg.load("torch"), "two layers", n=12)
    descent = lg.descents.Solve(lg.CG(max_steps=5, preconditioner=KFAC(decay=0.5)), every=every)
    method = lg.SecondOrder(descent=descent, level=1e-2)
    half = lg.minimize(f, p, method, max_steps=2)
    lg.save_state(tmp_path / "run", half.state)
    state = lg.load_state(tmp_path / "run", method, f, p)
    for _ in range(2):
        state = lg.advance(method, f, state)
    whole = lg.minimize(f, p, method, max_steps=4)
    for name in p:
        np.testing.assert_array_equal(state.params[name], whole.params[name])


def test_averages_are_of_factors_only(ops):
    f, p = made(ops, "two layers")
    with pytest.raises(ValueError, match="eigenvectors"):
        KFAC(decay=0.5)(lg.Damped(lg.EKFAC(f, p), 0.1))


def test_one_program_serves_all_steps(jax):
    f, p = made(lg.load("jax"), "two layers", n=12)
    method = lg.LevenbergMarquardt(solver=lg.CG(max_steps=5, preconditioner=KFAC()))
    state = lg.start(method, f, p)
    for _ in range(3):
        state = lg.advance(method, f, state)
    before = lg.load("jax").compilations()
    for _ in range(3):
        state = lg.advance(method, f, state)
    assert lg.load("jax").compilations() == before


def test_units_of_the_parameters(ops):
    """Of S (A + ...) S the preconditioner is near the inverse too; a method that scales takes it."""
    f, p = made(ops, "two layers", n=12)
    method = lg.SecondOrder(descent=lg.descents.Solve(lg.CG(preconditioner=KFAC())), level=1e-2, x_scale="start")
    assert float(lg.minimize(f, p, method, max_steps=4).value) < float(f.value(p))


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "both"},
        {"samples": 0},
        {"decay": 1.5},
        {"corrected": True, "decay": 0.5},
        {"corrected": True, "rule": "heuristic"},
    ],
)
def test_what_is_refused(options):
    with pytest.raises(ValueError, match="KFAC"):
        KFAC(**options)


def test_an_operator_without_an_objective_is_refused():
    A = lg.Dense(np.eye(3), psd=True)
    with pytest.raises(TypeError, match="KFAC"):
        KFAC()(A)


def test_curvature_in_place_of_its_inverse_is_told():
    pytest.importorskip("torch")
    f, p = made(lg.load("torch"), "two layers")
    for curvature, kind in ((lg.KFAC(f, p), lg.CG), (lg.GGN(f, p), lg.MINRES)):
        told = f"{kind.__name__}: preconditioner is {type(curvature).__name__}, which is curvature"
        with pytest.warns(UserWarning, match=told):
            kind(preconditioner=curvature)
