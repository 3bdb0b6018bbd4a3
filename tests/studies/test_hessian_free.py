"""The study of Hessian-free optimisation in its smallest form, and the figures that it is told by."""

import numpy as np
import pytest
from linop_gn_studies import Form, Results, hessian_free
from linop_gn_studies.data import Data
from linop_gn_studies.hessian_free import ALL, HF, LM, PARTS, Case, PixelCrossEntropy, equivalents
from linop_gn_studies.models import mlp, sparse
from linop_gn_studies.plan import HELD, NOT_HELD, NOT_REACHABLE, NOT_RUN

import linop_gn as lg

rng = np.random.default_rng(0)


def quiet(words):
    pass


@pytest.fixture(scope="module")
def results():
    """Every run of a tiny form, on torch."""
    pytest.importorskip("torch")
    x = rng.random((48, 16))
    tiny = Case(
        Data((x[:40], x[:40]), (x[40:], x[40:]), "drawn"), (16, 6, 3), 1, 2, 8, 20, 4, (1.0, 1.0), ((0.1, 0.2),) * 2
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hessian_free, "cases", lambda form: {"tiny": tiny})
        runs = hessian_free.plan(Form("quick", "torch"))
    assert len({run.name for run in runs}) == len(runs) == 7 + 2 * 2
    return Results({"case": run.case, "entry": run.entry, "seed": run.seed, **run.work(quiet)} for run in runs)


def test_the_smallest_form_trains_and_is_judged(results):
    for run in results:
        assert run["curves"]["train_loss"][-1] < run["curves"]["train_loss"][0]
        assert {len(curve) for curve in run["curves"].values()} == {len(run["curves"]["step"])}
    verdicts = hessian_free.claims(results)
    assert len(verdicts) == 4 + len(PARTS) + 3
    assert {v.outcome for v in verdicts[:-1]} <= {HELD, NOT_HELD}
    assert verdicts[-1].outcome == NOT_REACHABLE
    assert all(p.case == "tiny" for p in hessian_free.pictures(results))


def test_each_part_is_switched_off_by_itself(results):
    (whole,), (bare,) = (results.of("tiny", name) for name in (HF, f"{HF}, no backtracking"))
    assert bare["figures"]["evaluations"] < whole["figures"]["evaluations"]
    assert whole["curves"]["damping"][:2] == [45.0, 30.0]
    made = {part: hessian_free.hessian_free(**off) for part, off in PARTS.items()}
    assert made["warm start"].descent.warm is None
    assert made["preconditioner"].descent.solver.preconditioner is None
    assert made["backtracking"].descent.solver.keep is None
    assert made["stop rule"].descent.solver.steps == 150
    assert made["stop rule"].descent.solver.stop is None


def test_work_is_counted_in_gradients(results):
    for run in results:
        if run["of"] in (ALL, LM):
            continue
        first, last = run["curves"]["gradients"][0], run["curves"]["gradients"][-1]
        if run["of"].startswith(HF):
            probes = 0 if "preconditioner" in run["entry"] else 16
            products, evaluations = run["figures"]["products"], run["figures"]["evaluations"]
            of_all = 2 + (evaluations - 4) / 3
            assert first == pytest.approx(1 / 3)  # the value at the start
            assert last == pytest.approx(of_all + (products + 2 / 3 + 4 / 3 + 2 * probes * 2 / 3) / 4)
        else:
            assert (first, last) == (0, 4)
    assert equivalents(lg.LevenbergMarquardt(), 2, 10, 3, None) == pytest.approx(2 * 4 / 3 + 10 + 1)


def test_the_loss_is_summed_over_pixels_and_a_mean_over_images():
    z, y, loss = rng.standard_normal((5, 7)), rng.random((5, 7)), PixelCrossEntropy()
    p = 1 / (1 + np.exp(-z))
    images = -np.sum(y * np.log(p) + (1 - y) * np.log(1 - p), axis=1)
    assert float(loss.total(np, z, y, None) / loss.weight_sum(np, z, y, None)) == pytest.approx(images.mean())


def test_the_network_has_a_linear_code_and_starts_sparse():
    start = sparse((40, 30, 4, 30, 40), 3)
    assert [layer["weight"].shape for layer in start.values()] == [(40, 30), (30, 4), (4, 30), (30, 40)]
    for layer in start.values():
        assert not layer["bias"].any()
        assert 1 <= np.count_nonzero(layer["weight"], axis=0).max() <= 15
    x, made = rng.standard_normal((6, 40)), rng.standard_normal((6, 40))
    made = x
    for i, layer in enumerate(start.values()):
        made = made @ layer["weight"]
        made = made if i in (1, 3) else 1 / (1 + np.exp(-made))
    np.testing.assert_allclose(mlp("sigmoid", linear=(1,))(start, x), made, rtol=1e-12)


def test_seeds_and_learning_rates_share_a_program():
    assert mlp("sigmoid", linear=(1,)) is mlp("sigmoid", linear=(1,))
    assert mlp("sigmoid") is not mlp("tanh")


def made_up(entry, error, gradients, of=None, seed=0):
    curves = {
        "train_squared_error": error,
        "train_loss": error,
        "gradients": gradients,
        "seconds": gradients,
        "step": [0, 1, 2],
    }
    figures = {"train_squared_error": error[-1], "step": 2, "solver_steps": 7, "refused": 1}
    return {"case": "a", "entry": entry, "of": of or entry, "seed": seed, "curves": curves, "figures": figures}


def test_methods_are_compared_after_equal_work():
    runs = [
        made_up(HF, [9.0, 3.0, 1.0], [0, 10, 20]),
        made_up("Adam rate=1", [9.0, 4.0, 0.1], [0, 20, 40], "Adam"),  # lower in the end only
        made_up("Adam rate=2", [9.0, 0.5, None], [0, 10, 20], "Adam"),  # lower before it diverged
        made_up("Adam rate=3", [9.0, 5.0, 5.0], [0, 10, 20], "Adam"),
    ]
    by_claim = {v.claim: v for v in hessian_free.claims(Results(runs))}
    against = by_claim["a: a lower training error than Adam, tuned, at equal gradient equivalents"]
    assert against.outcome == NOT_HELD
    assert "Adam rate=2 0.5 " in against.ours
    assert against.why == ""
    assert by_claim["a: a lower training error than Nesterov, tuned, at equal gradient equivalents"].outcome == NOT_RUN

    runs[2] = made_up("Adam rate=2", [9.0, None, None], [0, 10, 20], "Adam")
    (against,) = (v for v in hessian_free.claims(Results(runs)) if v.claim == against.claim)
    assert against.outcome == HELD
    assert "Adam rate=1 4 " in against.ours
    assert "edge" in against.why


def test_a_part_pays_where_it_is_missed():
    whole = [made_up(HF, [9.0, 3.0, 1.0], [0, 10, 20], seed=s) for s in range(2)]
    for last, outcome in ((1.0, NOT_HELD), (1.5, HELD)):
        without = [made_up(f"{HF}, no stop rule", [9.0, 3.0, last], [0, 10, 20], seed=s) for s in range(2)]
        (verdict,) = (v for v in hessian_free.claims(Results([*whole, *without])) if "stop rule" in v.claim)
        assert verdict.outcome == outcome
        assert "(2 updates, 1 rejected, 7 steps of CG) against" in verdict.ours
        assert f"1 against {last:.3g} (" in verdict.ours
        assert f"lower from {0 if last == 1 else 2} of 2 seeds" in verdict.ours
