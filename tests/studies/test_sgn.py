"""The study of SGN: its network and data, a short run, and what its claims say of runs."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from scipy.signal import correlate2d

import linop_gn as lg

pytest.importorskip("torch")
pytest.importorskip("linop_gn_studies")
from linop_gn_studies import Form, Results, data, sgn
from linop_gn_studies.models import convolutional, uniform
from linop_gn_studies.plan import HELD, NOT_HELD, NOT_REACHABLE, NOT_RUN


def test_convolutions_by_indices_are_convolutions() -> None:
    start = uniform(14, ((3, 2), (3, 3)), (5, 4), seed=0)
    x = np.random.default_rng(1).standard_normal((2, 196))
    images = x.reshape(2, 14, 14)[..., None]
    for name in ("conv0", "conv1"):
        weight, size = start[name]["weight"], images.shape[1] - 2
        made = np.zeros((2, size, size, weight.shape[3]))
        for n, i, o in np.ndindex(2, weight.shape[2], weight.shape[3]):
            made[n, ..., o] += correlate2d(images[n, ..., i], weight[:, :, i, o], mode="valid")
        images = np.maximum(made, 0.0).reshape(2, size // 2, 2, size // 2, 2, -1).max((2, 4))
    hidden = np.maximum(images.reshape(2, -1) @ start["layer0"]["weight"], 0.0)
    assert np.allclose(convolutional(14)(start, x), hidden @ start["layer1"]["weight"])


def test_a_net_is_one_function() -> None:
    assert convolutional(28) is convolutional(28)  # or each run would be compiled anew


def test_fashion_mnist_is_read_and_standardised(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "none")
    assert data.fashion_mnist(tmp_path) is None
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype("u1")
    for part in ("train", "t10k"):
        images = struct.pack(">4B3I", 0, 0, 8, 3, 3, 28, 28) + pixels.tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI3B", 0, 0, 8, 1, 3, 1, 2, 3))
    found = data.fashion_mnist(tmp_path)
    assert found is not None
    assert found.train[0].shape == (3, 784)
    assert np.allclose(found.train[0].std(1), 1.0)
    assert found.test[1].tolist() == [1, 2, 3]


def test_sgn_learns_a_sine() -> None:
    task = sgn._regression(data.sine(10.0), sgn.SINE)
    made = sgn._train(task, "SGN(10)", sgn._sgn(10), "torch", 1, 25, 25, lambda words: None)
    assert made["of"] == "SGN(10)"
    assert made["steps"] == 25
    assert made["curves"]["train_loss"][-1] < 0.3 < made["curves"]["train_loss"][0]  # .46 is where SGD stays
    assert made["curves"]["sequential"][-1] >= 25 + 250 + 25  # gradients, products, values
    assert made["curves"]["damping"][0] == pytest.approx(1e-4)
    assert "history" not in made


def _run(case: str, entry: str, of: str, seed: int, steps: list[int], losses: list[float | None]) -> dict[str, Any]:
    curves = {"step": steps, "seconds": [0.1 * s for s in steps], "train_loss": losses, "held_out_loss": losses}
    figures = {name: column[-1] for name, column in curves.items()}
    source = {"source": "sin(10 x)"}
    return {
        "case": case, "entry": entry, "of": of, "seed": seed, "curves": curves, "figures": figures, "data": source
    }  # fmt: skip


def test_claims_say_what_runs_showed() -> None:
    runs = [_run("sine 10", "SGN(10)", "SGN(10)", s, [0, 20, 450], [2.0, 0.1, 2e-4]) for s in range(5)]
    runs += [_run("sine 10", "SGD rate=1", "SGD", s, [0, 30, 4500], [2.0, 0.5, 0.45]) for s in range(5)]
    runs += [_run("sine 10", "SGD rate=10", "SGD", 0, [0], [None])]
    alone = {"seconds, SGD": 0.001, "seconds, SGN(10)": 0.01}
    runs += [
        {"case": "sine 10", "entry": "a step alone", "seed": 0, "curves": {}, "figures": alone, "data": {"source": ""}}
    ]
    verdicts = {v.claim: v for v in sgn.claims(Results(runs))}
    outcomes = {claim: v.outcome for claim, v in verdicts.items()}
    assert outcomes["sine 10: SGN(10) has a loss of 0.0003 within 450 steps on 4 of 5 seeds"] == HELD
    assert outcomes["sine 10: SGN(5) has a loss of 0.15 within 35 steps on 4 of 5 seeds"] == NOT_RUN
    time = verdicts["sine 10: SGN(10) wins on time, to the same training loss"]
    assert time.outcome == HELD
    assert "alone 0.2 s against more than 4.5 s" in time.ours
    assert outcomes["CIFAR-10: SGN is more accurate than SGD"] == NOT_REACHABLE


@pytest.mark.parametrize("form", ["quick", "cpu"])
def test_the_plan_names_each_run_once(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = np.zeros((10, 784)), np.zeros(10, int)
    monkeypatch.setattr(sgn, "mnist", lambda folder, count=None: data.Data(part, part, "none"))
    monkeypatch.setattr(sgn, "boston", lambda: data.Data(part, part, "none"))
    runs = sgn.plan(Form(form, "torch"))
    assert len({run.name for run in runs}) == len(runs)
    assert sum(run.seconds for run in runs) < {"quick": 180, "cpu": 3 * 3600}[form]


def test_no_runs_no_verdict() -> None:
    assert {v.outcome for v in sgn.claims(Results([]))} <= {NOT_RUN, NOT_REACHABLE}
    assert isinstance(sgn._sgn(5), lg.SecondOrder)


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        ([1e-4] * 2, NOT_RUN),
        ([1e-4] * 4, HELD),
        ([1e-4] * 3 + [1.0], NOT_RUN),
        ([1e-4] * 3 + [1.0, None], NOT_HELD),
        ([1.0, 1.0], NOT_HELD),
    ],
)
def test_four_of_five_seeds_are_four_of_five(ends: list[float | None], outcome: str) -> None:
    runs = [_run("sine 10", "SGN(10)", "SGN(10)", s, [0, 450], [2.0, end]) for s, end in enumerate(ends)]
    verdicts = {v.claim: v for v in sgn.claims(Results(runs))}
    verdict = verdicts["sine 10: SGN(10) has a loss of 0.0003 within 450 steps on 4 of 5 seeds"]
    assert verdict.outcome == outcome
    assert len(ends) == 5 or verdict.why == f"run from {len(ends)} seeds of 5"
