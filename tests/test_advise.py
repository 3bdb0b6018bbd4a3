"""What is advised follows from what was measured, by the rules of the page, and can be run as it is written."""

from pathlib import Path

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.advise import RULES, Measured, decide

PAGE = Path(__file__).parent.parent / "docs" / "which.md"


@pytest.mark.skipif(not PAGE.exists(), reason="runs from the sources")
def test_the_page_has_every_rule_in_order():
    lines = [f"| {rule.when} | `{rule.use}` | {rule.why} |" for rule in RULES]
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.count("|") == 4 and "`lg." in line]
    assert rows == lines


@pytest.mark.parametrize(
    ("known", "advice"),
    [
        ({"has_loss": False}, ("lg.Hessian", "lg.GLTR()", "lg.TrustRegion()")),
        ({"convex": False}, ("lg.Hessian", "lg.GLTR()", "lg.TrustRegion()")),
        ({"convex": False, "notes": {"hessian": "x"}}, ("lg.GGN", "lg.CG(rtol=1e-2)", "lg.LevenbergMarquardt()")),
        ({}, ("lg.GGN", "lg.CG(rtol=1e-2)", "lg.LevenbergMarquardt()")),
        ({"outputs": 250}, ("lg.GGN", "lg.GramSolve()", "lg.LevenbergMarquardt()")),
        ({"outputs": 251}, ("lg.GGN", "lg.CG(rtol=1e-2)", "lg.LevenbergMarquardt()")),
        ({"noise": 0.2}, ("lg.GGN", "lg.CG(rtol=1e-2)", "lg.SGN()")),
        ({"noise": 0.2, "parameters": 9}, ("lg.GGN", "lg.CG(rtol=1e-2)", "lg.SGN()")),
        ({"noise": 0.05}, ("lg.GGN", "lg.CG(rtol=1e-2)", "lg.LevenbergMarquardt()")),
        ({"parameters": 9, "residuals": True}, ("lg.GGN", "lg.Cholesky()", "lg.least_squares")),
    ],
)
def test_rules_apply_to_what_was_measured(known, advice):
    made = decide(Measured(**{"parameters": 1000, "has_loss": True, "convex": True} | known))
    assert (made.curvature, made.solver, made.method) == advice
    for text in (str(made), made._repr_html_()):
        assert all(use in text for use in advice)


def test_what_was_measured_is_so_and_the_code_runs():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x, y = torch.randn(6, 2, dtype=torch.float64), torch.randint(2, (6,))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)).double()
    params, batches = dict(model.named_parameters()), [(x[:3], y[:3]), (x[3:], y[3:])]
    objective = lg.Objective(model, lg.losses.CrossEntropy(), batches)
    made = lg.advise(objective, params, steps=12)
    H, m = np.asarray(lg.Hessian(objective, params).to_dense().detach()), made.measured
    found = np.linalg.eigvalsh(H)
    assert (m.parameters, m.outputs, m.convex, m.residuals) == (12, 12, True, False)
    np.testing.assert_allclose([m.lowest, m.largest], found[[0, -1]], rtol=1e-6)
    assert m.negative == (found[0] < -1e-12)
    assert m.asymmetry < 1e-12
    flat = lg.Space.of(params)
    g = [np.asarray(flat.pack(objective.with_data(batch).gradient(params)).detach()) for batch in batches]
    mean = np.mean(g, axis=0)
    assert m.noise == pytest.approx(np.sqrt(np.mean([(one - mean) @ (one - mean) for one in g]) / (mean @ mean)))
    scope = {"lg": lg, "objective": objective, "params": params, "batches": batches}
    assert made.code == "lg.minimize(objective, params, lg.SGN(), batches=batches)"
    assert eval(made.code, scope).succeeded
    whole = lg.Objective(model, lg.losses.CrossEntropy(), (x, y))
    made = lg.advise(whole, params)
    assert made.code == "lg.minimize(objective, params, lg.LevenbergMarquardt(solver=lg.Cholesky()))"
    eval(made.code[:-1] + ", max_steps=1)", scope | {"objective": whole})
    assert "Not measured:\n  noise of the batches' gradients: there are not several batches" in str(made)
    assert "curvature: lg.GGN, since it needs no second derivatives of the model" in str(made)


def test_a_scalar_function_is_told_its_negative_curvature():
    bowl = lg.Objective.from_function(
        lambda p: np.sum(p**4 - p**2), gradient=lambda p: 4 * p**3 - 2 * p, hvp=lambda p, v: (12 * p**2 - 2) * v
    )
    made = lg.advise(bowl, np.array([0.1, 0.2]))
    assert (made.measured.negative, made.measured.outputs) == (True, None)
    run = eval(made.code, {"lg": lg, "objective": bowl, "params": np.array([0.1, 0.2])})
    np.testing.assert_allclose(run.params, np.sqrt([0.5, 0.5]))
    with pytest.raises(TypeError, match=r"advise needs an lg\.Objective"):
        lg.advise(np.sum, np.ones(2))


def test_where_products_are_not_finite_nothing_is_advised():
    fit = lg.Objective.from_residuals(lambda p: np.sqrt(p), jacobian=lambda p: np.diag(0.5 / np.sqrt(p)))
    with (
        np.errstate(divide="ignore", invalid="ignore"),
        pytest.raises(ValueError, match="not finite at these parameters"),
    ):
        lg.advise(fit, np.array([0.0, 1.0]))
