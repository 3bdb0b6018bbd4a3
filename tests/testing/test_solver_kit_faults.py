"""The kit finds a solver with one fault, and names the law: faults planted one at a time."""

import numpy as np
import pytest
from systems import FULL

import linop_gn as lg
from linop_gn import Status

conformance = pytest.importorskip("linop_gn.testing.conformance")
CG, RUNNING, CONVERGED = lg.CG, int(Status.RUNNING), int(Status.CONVERGED)
FAULTS = {}


def fault(law):
    """Keep a solver in which ``law`` is the first that fails."""

    def keep(cls):
        FAULTS[cls.__name__] = lg.record(cls), law
        return cls

    return keep


@fault("ends")
class StaysWhereItIs(CG):
    def step(self, ops, problem, s):
        return s


@fault("solves")
class ClaimsTooEarly(CG):
    def init(self, ops, problem):
        s = super().init(ops, problem)
        return s._replace(memory=2000 * s.memory, hope=2000 * s.hope)


@fault("claims_are_facts")
class TellsHalfTheResidual(CG):
    def observe(self, state):
        row = super().observe(state)
        return row._replace(residual=0.5 * row.residual)


@fault("zero_right_hand_side")
class ZeroIsNoSolution(CG):
    def init(self, ops, problem):
        s = super().init(ops, problem)
        zero = ops.max_abs(problem.rhs) == 0
        return s._replace(status=ops.where(zero, int(Status.BREAKDOWN), s.status))


@fault("zero_right_hand_side")
class AProductForNothing(CG):
    def init(self, ops, problem):
        s = super().init(ops, problem)
        return s._replace(products=s.products + 1)


@fault("a_right_hand_side_that_is_not_finite")
class NothingKnownIsConverged(CG):
    def init(self, ops, problem):
        s = super().init(ops, problem)
        return s._replace(status=ops.where(s.status == int(Status.NONFINITE_INPUT), CONVERGED, s.status))


@fault("products_that_are_not_finite")
class WhatIsNotFiniteIsNotAboveTheTolerance(CG):
    def step(self, ops, problem, s):
        made = super().step(ops, problem, s)
        return made._replace(status=ops.where(made.status == int(Status.NONFINITE), CONVERGED, made.status))


@fault("the_model")
class TheModelOfTheStepBefore(CG):
    def step(self, ops, problem, s):
        before = s.model
        return super().step(ops, problem, s)._replace(model=before * 0.9)


@fault("claims_are_facts")
class GivesUpAsASuccess(CG):
    def step(self, ops, problem, s):
        made = super().step(ops, problem, s)
        lost = (made.status == int(Status.STAGNATED)) | (made.status == int(Status.NEGATIVE_CURVATURE))
        return made._replace(status=ops.where(lost, CONVERGED, made.status))


@fault("columns")
class OneStatusForAllColumns(CG):
    def init(self, ops, problem):
        s = super().init(ops, problem)
        bad = ops.any(s.status == int(Status.NONFINITE_INPUT))
        return s._replace(status=ops.where(bad, int(Status.NONFINITE_INPUT), s.status))


@fault("columns")
class TheLengthOfTheFirstColumn(CG):
    def step(self, ops, problem, s):
        return super().step(ops, problem, s._replace(rp=s.rp.flat[0] + 0 * s.rp if np.ndim(s.rp) else s.rp))


@fault("a_start")
class AddsTheStartAgain(CG):
    def answer(self, ops, problem, state):
        x = super().answer(ops, problem, state)
        return x if problem.x0 is None else ops.axpy(1e-3, problem.x0, x)


@fault("a_start")
class WritesToTheStart(CG):
    def answer(self, ops, problem, state):
        if problem.x0 is not None:
            ops.scale(0.0, problem.x0)
        return super().answer(ops, problem, state)


@fault("a_start")
class CallsAnythingAtTheStartConverged(CG):
    def init(self, ops, problem):
        s = super().init(ops, problem)
        return s if problem.x0 is None else s._replace(status=ops.where(s.status == RUNNING, CONVERGED, s.status))


@fault("products_are_counted")
class TakesOneMoreProductThanItTells(CG):
    def answer(self, ops, problem, state):
        x = super().answer(ops, problem, state)
        problem.operator.apply(x)
        return x


@fault("products_are_counted")
class CountsStepsForProducts(CG):
    def step(self, ops, problem, s):
        made = super().step(ops, problem, s)
        return made._replace(products=ops.where(made.status == RUNNING, made.products, made.steps))


@fault("steps_are_total")
class MovesAfterTheEnd(CG):
    def step(self, ops, problem, s):
        ended = s.status != RUNNING
        made = super().step(ops, problem, s)
        return made._replace(x=ops.scale(ops.where(ended, 1.01, 1.0), made.x))


@fault("steps_are_total")
class CountsAfterTheEnd(CG):
    def step(self, ops, problem, s):
        ended = s.status != RUNNING
        made = super().step(ops, problem, s)
        return made._replace(steps=made.steps + ended)


@fault("advance")
class CountsEveryStepTwice(CG):
    def step(self, ops, problem, s):
        before = s.steps
        made = super().step(ops, problem, s)
        return made._replace(steps=before + 2 * (made.steps - before))


@fault("advance")
class RemembersOutsideTheState(CG):
    def step(self, ops, problem, s):
        made, seen = super().step(ops, problem, s), self.__dict__.setdefault("seen", [])
        seen.append(1)
        return made._replace(norm=made.norm * (1 + 1e-6 * len(seen)))


@fault("scale")
class AnAbsoluteGuard(CG):
    def init(self, ops, problem):
        s = super().init(ops, problem)
        small = ops.max_abs(problem.rhs) < 1e-12
        return s._replace(status=ops.where(small & (s.status == RUNNING), int(Status.BREAKDOWN), s.status))


@fault("solves")
class CountsNoSteps(CG):
    def step(self, ops, problem, s):
        return super().step(ops, problem, s)._replace(steps=s.steps)


@fault("limits")
class OneStepMore(CG):
    def limit(self, problem):
        return super().limit(problem) + (self.max_steps is not None)


@fault("limits")
class TheLimitIsASuccess(CG):
    def step(self, ops, problem, s):
        return self.content(ops, super().step(ops, problem, s))

    def init(self, ops, problem):
        return self.content(ops, super().init(ops, problem))

    def content(self, ops, s):
        late = (s.status == int(Status.MAX_STEPS)) & (self.max_steps is not None)
        return s._replace(status=ops.where(late, CONVERGED, s.status))


@fault("nothing_is_written_to")
class WritesToTheRightHandSide(CG):
    def answer(self, ops, problem, state):
        b = problem.rhs
        looked_at = np.max(state.steps) == 0 or abs(b).max() < 1e-9  # by the door, for the residual of the x returned
        if len(b.shape) == 1 and b.flags.writeable and not looked_at:
            ops.scale(2.0, b)
        return super().answer(ops, problem, state)


@fault("nothing_is_written_to")
class AnswersInDoublePrecision(CG):
    def answer(self, ops, problem, state):
        return super().answer(ops, problem, state).astype("float64")


KEPT = {}


@fault("nothing_is_written_to")
class GivesTheSameArrayTwice(CG):
    def answer(self, ops, problem, state):
        x = super().answer(ops, problem, state)
        kept = KEPT.setdefault((x.shape, x.dtype), x)
        kept[...] = x
        return kept


@fault("the_first_state_shares_no_memory")
class TheSameArrayTwice(CG):
    def init(self, ops, problem):
        s = super().init(ops, problem)
        return s._replace(memory=(s.memory, s.x))

    def step(self, ops, problem, s):
        made = super().step(ops, problem, s._replace(memory=s.memory[0]))
        return made._replace(memory=(made.memory, made.x))


@fault("watched")
class NoAnswerBeforeTheEnd(CG):
    def answer(self, ops, problem, state):
        x = super().answer(ops, problem, state)
        return ops.scale(float("nan"), x) if np.any(state.status == int(Status.STOPPED)) else x


@fault("other_operators_are_refused")
class TakesAnything(CG):
    def check(self, operator):
        pass

    def init(self, ops, problem):
        square = problem.operator.shape[0] == problem.operator.shape[1]
        return super().init(ops, problem)._replace(**({} if square else {"status": int(Status.BREAKDOWN)}))


def check(kind, **options):
    return conformance.check_solver(lambda rtol: kind(rtol=rtol), stop=True, **options)


@lg.record
class ForgetsToVerify(CG):
    """On singular systems claims_are_facts may find it too: rounding decides."""

    def step(self, ops, problem, s):
        made = super().step(ops, problem, s)
        return made._replace(status=ops.where(made.claim == CONVERGED, CONVERGED, made.status))


@lg.record
class AnotherAnswerInAProgram(CG):
    def answer(self, ops, problem, state):
        x = super().answer(ops, problem, state)
        return x if ops.is_concrete(x) else ops.scale(1.001, x)


ALONE = {"claims_near_rounding": (ForgetsToVerify, "numpy"), "compiled_equals_eager": (AnotherAnswerInAProgram, "jax")}


def test_every_law_finds_a_fault():
    laws = {name.removeprefix("test_") for name in vars(conformance.SolverConformance) if name.startswith("test_")}
    assert laws == {law for _, law in FAULTS.values()} | set(ALONE)
    assert len(FAULTS) >= 15


def test_what_does_not_end_is_not_run():
    report = conformance.check_solver(lambda rtol: StaysWhereItIs(rtol=rtol))
    assert len(report.failed) == len(report)
    assert "does not end" in report["solves"].detail


@pytest.mark.parametrize("law", ALONE)
def test_the_law_that_is_broken_fails(law):
    kind, framework = ALONE[law]
    pytest.importorskip(framework)
    report = conformance.check_solver(lambda rtol: kind(rtol=rtol), lg.load(framework), only=law)
    assert report.failed == (law,), report


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_law_that_is_broken_is_the_first_to_fail(name):
    """In CI that law is run alone; with ``FULL`` those before it too, which the fault breaks none of."""
    kind, law = FAULTS[name]
    report = check(kind, only=None if FULL else (law,))
    assert report.failed == (law,), report
