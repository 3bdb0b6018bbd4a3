"""The study of EGN: dual and primal, its tables, and what its claims say of runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("linop_gn_studies")
from linop_gn_studies import Form, Results, data, egn
from linop_gn_studies.plan import HELD, NOT_HELD, NOT_REACHABLE, NOT_RUN


@pytest.mark.parametrize("name", list(egn.DUALS))
def test_dual_is_primal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egn, "TOGETHER", 2)
    figures = egn._dual(name, "torch", lambda words: None)["figures"]
    assert figures["direction"] < 1e-12
    assert figures["path"] < 1e-9


def test_a_table_is_read(tmp_path: Any) -> None:
    assert data.california(tmp_path) is None
    rows = [f"{i},{'' if i == 3 else 2 * i},{1e5 * i},{'ab'[i % 2]}" for i in range(20)]
    text = "\n".join(["age,bedrooms,median_house_value,ocean", *rows])
    (tmp_path / "california_housing.csv").write_text(text)
    found = data.california(tmp_path)
    assert found is not None
    (x, y), (held, _) = found.train, found.test
    assert (x.shape, held.shape) == ((18, 4), (2, 4))
    assert np.allclose(x.mean(0), 0.0)
    assert np.allclose(x.std(0), 1.0)
    assert np.all(np.isfinite(held))
    assert set(np.round(np.concatenate([y, found.test[1]]).ravel())) == set(range(20))


def test_methods_train(monkeypatch: pytest.MonkeyPatch) -> None:
    table = data.diabetes()
    made = egn._train(table, "EGN", egn._egn(0.5), "torch", 0, 12, 64, lambda words: None)
    curves = made["curves"]
    assert made["figures"]["epoch"] == 12 / 6  # 398 examples: 6 batches of 64, and no short one
    assert curves["train_loss"][-1] < 0.5 * curves["train_loss"][0]
    assert made["figures"][egn.RMSE] == pytest.approx((2.0 * curves["held_out_loss"][-1]) ** 0.5)


def _runs(entry: str, of: str, errors: list[Any]) -> list[dict[str, Any]]:
    made = {"case": "diamonds", "entry": entry, "of": of, "curves": {}}
    figures = ({egn.RMSE: error, "seconds_per_step": 0.001, "step": 5000} for error in errors)
    return [{**made, "seed": seed, "figures": found} for seed, found in enumerate(figures)]


def test_claims_say_what_runs_showed() -> None:
    egns = [*_runs("EGN length=1", "EGN", [9.0, 9.0]), *_runs("EGN length=0.5", "EGN", [1.0, 1.2])]
    for rival, outcome in (([0.95, 1.05], HELD), ([0.5, 0.6], NOT_HELD)):
        runs = [*egns, *_runs("SGD rate=1", "SGD", [2.0, 2.0]), *_runs("Adam rate=1", "Adam", rival)]
        first, *_, last = [v for v in egn.claims(Results(runs)) if "tuned" in v.claim]
        assert first.outcome == outcome
        assert "EGN length=0.5 1.1000 +- 0.1000" in first.ours
        assert last.claim.startswith("California housing")
        assert last.outcome == NOT_REACHABLE, NOT_RUN


def test_the_plan_names_each_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egn, "diamonds", lambda: None)
    runs = egn.plan(Form("quick", "torch"))
    assert len({run.name for run in runs}) == len(runs)
    assert sum(run.seconds for run in runs) < 180


def test_one_seed_has_no_spread_and_what_diverges_is_worse() -> None:
    for egns, adam, outcome in (
        ([1.0], [1.0], NOT_RUN),
        ([None, 1.0], [1.0, 1.1], NOT_HELD),
        ([1.0] * 2, [None] * 2, HELD),
    ):
        runs = (
            _runs("EGN length=1", "EGN", egns)
            + _runs("Adam rate=1", "Adam", adam)
            + _runs("SGD rate=1", "SGD", [2.0, 2.0])
        )
        (first, *_) = [v for v in egn.claims(Results(runs)) if "tuned" in v.claim]
        assert first.outcome == outcome
