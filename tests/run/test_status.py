"""Every reason to stop is a small code with a sentence of its own."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn import Status


def test_every_status_explains_itself_in_sentences():
    sentences = [status.sentence for status in Status]
    assert len(set(sentences)) == len(sentences)
    for sentence in sentences:
        assert sentence[0].isupper()
        assert sentence.endswith((".", ")."))


def test_codes_survive_an_array_of_small_integers():
    codes = np.array([int(status) for status in Status], dtype=np.int8)
    assert [Status(int(code)) for code in codes] == list(Status)
    assert int(Status.RUNNING) == 0
    assert f"{Status.RUNNING}" == str(Status(0)) == "RUNNING"


def test_only_what_was_asked_for_is_a_success():
    assert {status for status in Status if status.succeeded} == {
        Status.CONVERGED,
        Status.COMPLETED,
        Status.BOUNDARY,
        Status.LEVELLED_OFF,
        Status.SATISFIED,
        Status.LEAST_SQUARES,
        Status.INVARIANT,
        Status.UNEXPLORED,
        Status.GRADIENT_SMALL,
        Status.STEP_SMALL,
        Status.DECREASE_SMALL,
        Status.AT_PRECISION,
        Status.REDUCED,
    }


@pytest.mark.parametrize("solver", [lg.CG(rtol=1e-10), lg.MINRES(rtol=1e-10), lg.LSMR(atol=1e-10, btol=1e-10)])
def test_products_that_change_are_named_as_a_cause(solver):
    draws, b = np.random.default_rng(0), np.arange(5.0)
    A = lg.FunctionOperator(lambda v: v * (1 + 0.1 * draws.random()), lg.Space.of(b), symmetric=True, psd=True)
    solution = lg.solve(A, b, solver)
    assert not solution.succeeded
    assert "products change from call to call" in solution.status.sentence
    assert "FAILED" in str(lg.validate(A))
