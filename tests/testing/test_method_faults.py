"""The kit for methods finds a method with one fault, and names the law: faults planted one at a time."""

import itertools
from typing import Any, NamedTuple

import pytest
from systems import FULL

import linop_gn as lg
from linop_gn.run.status import Code, verdict

conformance = pytest.importorskip("linop_gn.testing.conformance")
FAULTS = {}


class State(NamedTuple):
    x: Any
    velocity: Any
    gradient: Any
    value: Any
    status: Any
    steps: Any
    extra: Any = None


@lg.record
class Sound(lg.Method):
    """Gradient descent with momentum, without a fault; each part can be given one."""

    rate: float = 0.1
    momentum: float = 0.5

    def begins(self, ops, problem, point):
        return State(point.x, ops.zeros_like(point.x), point.gradient, ops.item(point.value), 0, 0)

    def init(self, ops, problem):
        s = self.begins(ops, problem, problem.at(problem.start))
        sound = self.sound(ops, s.value, s.gradient)
        zero = ops.scalar(0, s.x)
        claims = (ops.logical_not(sound), Code.NONFINITE_INPUT), (problem.max_steps == 0, Code.MAX_STEPS)
        return s._replace(status=verdict(ops, zero + Code.RUNNING, *claims), steps=zero)

    def sound(self, ops, value, gradient):
        return ops.isfinite(value) & ops.isfinite(ops.dot(gradient, gradient))

    def moved(self, ops, s):
        velocity = ops.axpby(-self.rate, s.gradient, self.momentum, s.velocity)
        return ops.axpy(1.0, s.x, ops.copy(velocity)), velocity

    def running(self, s):
        return s.status == Code.RUNNING

    def ended(self, ops, problem, s, steps, sound):
        running = s.status == Code.RUNNING
        claims = (ops.logical_not(sound), Code.NONFINITE), (steps >= problem.max_steps, Code.MAX_STEPS)
        return verdict(ops, s.status, *((running & condition, code) for condition, code in claims))

    def step(self, ops, problem, s):
        running = self.running(s)
        trial, velocity = self.moved(ops, s)
        point = problem.at(trial)
        value, gradient, steps = ops.item(point.value), point.gradient, s.steps + ops.where(running, 1, 0)
        sound = self.sound(ops, value, gradient)
        taken = running & sound
        return State(
            ops.select(taken, point.x, s.x),
            velocity,
            ops.select(taken, gradient, s.gradient),
            ops.where(taken, value, s.value),
            self.ended(ops, problem, s, steps, sound),
            steps,
            s.extra,
        )


@lg.record
class Held:
    """A vector that no step consumes."""

    v: Any


class Linear:
    """A framework's own linearisation."""

    def jvp(self, v):
        return v


def fault(law, backend="numpy"):
    """Keep a method in which ``law`` is the first that fails."""

    def keep(cls):
        FAULTS[cls.__name__] = lg.record(cls), law, backend
        return cls

    return keep


@fault("numbers_are_data")
class RateIsPartOfTheProgram(Sound):
    rate: float = lg.static(default=0.1)


@lg.record
class NeverEnds(Sound):
    def ended(self, ops, problem, s, steps, sound):
        return s.status


@lg.record
class TakesOneStepTooMany(Sound):
    def ended(self, ops, problem, s, steps, sound):
        return super().ended(ops, problem, s, steps - 1, sound)


@lg.record
class CountsByTwos(Sound):
    def step(self, ops, problem, s):
        made = super().step(ops, problem, s)
        return made._replace(steps=s.steps + 2 * (s.steps < problem.max_steps))


@lg.record
class CountsNothing(Sound):
    def step(self, ops, problem, s):
        return super().step(ops, problem, s)._replace(steps=s.steps, status=s.status)


@fault("ends_at_the_limit")
class CountsFromOne(Sound):
    def init(self, ops, problem):
        made = super().init(ops, problem)
        return made._replace(steps=made.steps + 1)


@fault("ends_at_the_limit")
class HasNoValue(Sound):
    columns = ("value", "gradient_norm")


@fault("no_steps")
class StepsBeforeTheFirstStep(Sound):
    def init(self, ops, problem):
        s = super().init(ops, problem)
        point = problem.at(ops.axpy(-0.1, s.gradient, s.x))
        return s._replace(x=point.x, gradient=point.gradient, value=ops.item(point.value))


@fault("the_value_is_that_of_the_parameters")
class TellsTheValueBefore(Sound):
    def step(self, ops, problem, s):
        return super().step(ops, problem, s)._replace(value=s.value)


@fault("consumed_buffers")
class RemembersItsPointByIdentity(Sound):
    """What the problem itself did once: x is a buffer that axpy writes over. What it remembers stays alive."""

    def begins(self, ops, problem, point):
        self.__dict__["seen"] = {}
        return super().begins(ops, problem, point)

    def step(self, ops, problem, s):
        x = ops.axpy(-self.rate, s.gradient, s.x)
        _, point = self.seen.setdefault(id(x), (x, problem.at(x)))
        steps = s.steps + 1
        value, gradient = ops.item(point.value), point.gradient
        return State(x, s.velocity, gradient, value, self.ended(ops, problem, s, steps, True), steps)


@fault("goes_down")
class GoesUp(Sound):
    rate: float = -0.02


@fault("goes_down")
class CallsTheSecondStepASuccess(Sound):
    def ended(self, ops, problem, s, steps, sound):
        ended = super().ended(ops, problem, s, steps, sound)
        return ops.where((s.status == Code.RUNNING) & (steps == 9), Code.CONVERGED, ended)


@fault("the_start_is_not_written_to")
class RoundsInSinglePrecision(Sound):
    def step(self, ops, problem, s):
        made = super().step(ops, problem, s)
        return made._replace(value=round(made.value, 2)) if ops.describe(s.x)[1] == "float32" else made


@fault("the_state_is_a_tree_of_arrays")
class KeepsAFunction(Sound):
    def begins(self, ops, problem, point):
        return super().begins(ops, problem, point)._replace(extra=lambda: point)


@fault("the_state_is_a_tree_of_arrays")
class KeepsItsHistoryInAnObject(Sound):
    def begins(self, ops, problem, point):
        return super().begins(ops, problem, point)._replace(extra={1, 2, 3})


@fault("the_first_state_shares_no_memory")
class SharesABuffer(Sound):
    def begins(self, ops, problem, point):
        s = super().begins(ops, problem, point)
        return s._replace(velocity=ops.scale(0.0, s.velocity), extra=(s.gradient,))


@fault("the_first_state_shares_no_memory")
class StartsInTheProblemsOwnVector(Sound):
    def begins(self, ops, problem, point):
        return super().begins(ops, problem, point)._replace(x=problem.start)


@fault("consumed_buffers")
class ReadsWhatWasConsumed(Sound):
    def moved(self, ops, s):
        ops.axpby(-self.rate, s.gradient, self.momentum, s.velocity)
        return ops.axpy(1.0, s.x, ops.copy(s.velocity)), s.velocity


@fault("consumed_buffers")
class ForgetsToCopy(Sound):
    def moved(self, ops, s):
        x = ops.axpy(1.0, ops.axpby(-self.rate, s.gradient, self.momentum, s.velocity), s.x)
        return ops.copy(x), ops.subtract(x, s.x)


@fault("steps_are_total")
class MovesAfterTheEnd(Sound):
    def step(self, ops, problem, s):
        made = super().step(ops, problem, s)
        return made._replace(x=ops.axpy(1e-3, made.gradient, made.x)) if s.status == Code.MAX_STEPS else made


@fault("steps_are_total")
class ForgetsThatItWasStopped(Sound):
    def ended(self, ops, problem, s, steps, sound):
        return ops.where(steps >= problem.max_steps, Code.MAX_STEPS, Code.RUNNING)


@fault("resumes")
class KeepsItsMomentumOnItself(Sound):
    def begins(self, ops, problem, point):
        self.__dict__["velocity"] = ops.zeros_like(point.x)
        return super().begins(ops, problem, point)

    def moved(self, ops, s):
        before = self.__dict__.get("velocity")
        before = ops.zeros_like(s.x) if before is None else before
        velocity = ops.axpby(-self.rate, s.gradient, self.momentum, before)
        self.__dict__["velocity"] = velocity
        return ops.axpy(1.0, s.x, ops.copy(velocity)), s.velocity


@fault("one_step_at_a_time")
class MakesUpItsStateAtEachStretch(Sound):
    """Its second step in a row is longer: which one is that?"""

    def begins(self, ops, problem, point):
        return super().begins(ops, problem, point)._replace(extra=0.0)

    def step(self, ops, problem, s):
        rate = self.rate * (1 + (problem.max_steps > 1000))
        return Sound(rate, self.momentum).step(ops, problem, s)


@fault("a_state_goes_on_twice")
class WritesIntoItsRecords(Sound):
    def moved(self, ops, s):
        s.extra.v.__imul__(0.5)
        velocity = ops.axpby(-self.rate, s.gradient, self.momentum, s.velocity)
        velocity = ops.axpy(-0.01, s.extra.v, velocity)
        return ops.axpy(1.0, s.x, ops.copy(velocity)), velocity

    def begins(self, ops, problem, point):
        return super().begins(ops, problem, point)._replace(extra=Held(ops.copy(point.x)))


@fault("other_data")
class KeepsTheGradientUnderAnotherName(Sound):
    of_data = ("value",)


@fault("other_data")
class TellsTheValueOfTheDataBefore(Sound):
    of_data = ("gradient",)

    def step(self, ops, problem, s):
        made = super().step(ops, problem, s)
        return made._replace(value=s.value) if problem.once else made


@fault("other_data_keep_the_rest")
class ForgetsItsMomentumAtEachBatch(Sound):
    def renew(self, ops, problem, state):
        return self.init(ops, lg.replace(problem, start=state.x))._replace(steps=state.steps)


@fault("comes_back_from_a_file")
class KeepsWhatNoFileHolds(Sound):
    def begins(self, ops, problem, point):
        return super().begins(ops, problem, point)._replace(extra=Linear())


@fault("runs_do_not_meet")
class SharesItsMomentum(Sound):
    kept = {}  # noqa: RUF012

    def begins(self, ops, problem, point):
        self.kept["velocity"] = ops.zeros_like(point.x)
        return super().begins(ops, problem, point)

    def moved(self, ops, s):
        velocity = self.kept["velocity"] = ops.axpby(-self.rate, s.gradient, self.momentum, self.kept["velocity"])
        return ops.axpy(1.0, s.x, ops.copy(velocity)), s.velocity


@fault("watched")
class AnswersOtherwiseWhenStopped(Sound):
    def answer(self, ops, problem, state):
        return state.x if state.status in (Code.MAX_STEPS, Code.NONFINITE_INPUT) else 0.5 * state.x


@fault("a_trial_without_a_value_is_refused")
class StepsToNaN(Sound):
    def sound(self, ops, value, gradient):
        return ops.isfinite(gradient[0] * 0.0 + 1.0) | True


@fault("a_trial_without_a_gradient_is_refused")
class LooksAtTheValueAlone(Sound):
    def sound(self, ops, value, gradient):
        return ops.isfinite(value)


@fault("a_start_without_numbers")
class DoesNotLookAtTheStart(Sound):
    def init(self, ops, problem):
        s = super().init(ops, problem)
        wrong = s.status == Code.NONFINITE_INPUT
        return s._replace(status=Code.CONVERGED if wrong else s.status)


@fault("streamed_data")
class TakesTheFirstBatch(Sound):
    def begins(self, ops, problem, point):
        assert problem.objective.batches[0] is not None
        return super().begins(ops, problem, point)


calls = itertools.count()


@fault("compiled_equals_eager", "jax")
class CountsItsCalls(Sound):
    def moved(self, ops, s):
        return ops.axpy(-0.1 / (1 + next(calls)), s.gradient, s.x), s.velocity


@fault("compiled_once", "jax")
class MakesAFunctionOfItsOwn(Sound):
    rule: Any = lg.static(default=None)

    def __post_init__(self):
        object.__setattr__(self, "rule", lambda x: x)


@pytest.mark.parametrize("method", [Sound, NeverEnds, TakesOneStepTooMany, CountsByTwos])
def test_a_sound_method_passes_whether_or_not_it_counts_and_ends(method):
    conformance.check_method(method(), lg.load("numpy")).raise_if_failed()


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_steps_are_counted_and_limited_for_it(name):
    pytest.importorskip(name)
    conformance.check_method(CountsNothing(), lg.load(name), only=("ends_at_the_limit", "watched")).raise_if_failed()


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_law_that_is_broken_is_the_first_to_fail(name):
    """In CI that law is run alone; with ``FULL`` those before it too, which the fault breaks none of."""
    method, law, backend = FAULTS[name]
    pytest.importorskip(backend)
    report = conformance.check_method(method(), lg.load(backend), only=None if FULL else (law,), stop=True)
    assert report.failed == (law,), report


def test_every_law_finds_a_fault():
    report = conformance.check_method(Sound(), lg.load("numpy"))
    unproven = {finding.name for finding in report} - {law for _, law, _ in FAULTS.values()}
    assert unproven == {"inside_a_program"}  # what would fail there fails wherever it is compiled


def test_a_kit_without_a_method_says_so():
    with pytest.raises(TypeError, match="give its class body a line `method"):
        type("Kit", (conformance.MethodConformance,), {"backend": lg.load("numpy")})().setup_method()
