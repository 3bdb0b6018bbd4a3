"""The study of the slides: what its claims say of runs."""

import numpy as np
import pytest

pytest.importorskip("linop_gn_studies")
from linop_gn_studies import Results, slides
from linop_gn_studies.plan import HELD, NOT_HELD, NOT_RUN


def result(entry, loss, steps=158, of=None, **figures):
    curves = {"step": [0, steps], "train_loss": [2.3, loss]}
    figures = {"step": steps, "train_loss": loss, "epoch_loss": loss, "held_out_accuracy": 0.5, **figures}
    data = {"source": "none", "train": 5000, "held out": 1000}
    return {
        "case": "MNIST", "entry": entry, "of": of or entry, "seed": 0, "curves": curves, "figures": figures,
        "data": data,
    }  # fmt: skip


def outcome(rows, words):
    ((found, why),) = [(v.outcome, v.why) for v in slides.claims(Results(rows)) if words in v.claim]
    return found, why


def test_newton_fails_where_its_loss_does_not_fall():
    sgd = result("SGD", 0.2)
    claim = "Newton without damping fails"
    assert outcome([sgd, result("Newton", 1.9, steps=10, epoch_loss=2.1)], claim)[0] == NOT_HELD  # it has only begun
    assert outcome([sgd, result("Newton", 7e3, steps=10)], claim)[0] == HELD
    assert outcome([sgd, result("Newton", None, steps=10)], claim)[0] == HELD
    assert outcome([sgd], claim)[0] == NOT_RUN


@pytest.mark.parametrize("name", ["LM", "GLTR"])
def test_what_diverges_is_not_as_good_as_what_diverges(name):
    rows = [result("HF-GN", None), result(name, None), result(f"{name}, full batch", None)]
    rows += [result(f"HF-GN, fixed damping={d}", None if d < 4 else 9.0, of="HF-GN, fixed") for d in (4, 1)]
    assert outcome(rows, f"{name} at batch 64")[0] == NOT_HELD
    assert outcome(rows, f"{name} on all data") == (
        NOT_HELD,
        "HF-GN, fixed damping=4 is at the edge of what was tried",
    )


def test_a_short_last_batch_is_told():
    rows = [result("HF-GN", 0.1), result("SGD", 0.2), result("HF-Newton", 0.3)]
    assert outcome(rows, "HF-GN has a lower loss") == (
        HELD,
        "accuracies are measured after a batch of 8, the last of an epoch, which moves SGD most",
    )


def test_no_runs_no_verdict():
    assert slides.claims(Results([])) == []
    assert {v.outcome for v in slides.claims(Results([result("another", np.nan)]))} <= {NOT_RUN, "not reachable here"}
