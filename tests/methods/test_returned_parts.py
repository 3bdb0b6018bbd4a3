"""What a part of a user's own returns is looked at: an error names the class, the member and what is wanted."""

import numpy as np
import pytest

import linop_gn as lg

T = np.linspace(0.0, 1.0, 5)
FIT = lg.Objective.from_residuals(lambda p: p[0] + p[1] * T - T**2, jacobian=lambda p: np.stack([1 + 0 * T, T], 1))


def part(base, **members):
    """A part whose members are the functions given, of all but the part and what comes first, the backend."""

    def member(given):
        return lambda self, first, *rest: given(*rest)

    return lg.record(type("Mine", (base,), {name: member(given) for name, given in members.items()}))()


def descent(**members):
    return lg.SecondOrder(descent=part(lg.descents.Descent, **members))


def trial(*given):
    return lambda model, kept, level: lg.descents.Trial(*given, lg.Status.COMPLETED, kept)


def control(**members):
    return lg.LevenbergMarquardt(rule=part(lg.controls.Control, **members))


def first(**members):
    return lg.FirstOrder(part(lg.optimisers.Optimiser, init=lambda space, x: None, **members), 0.1)


def later(schedule):
    return lg.FirstOrder(lg.optimisers.SGD(), 0.1, schedule=lg.controls.WarmUp(2, then=schedule))


def search(given):
    return lg.SecondOrder(search=part(lg.searches.Search, search=lambda line: given(line)))


WRONG = [
    (lambda: control(update=lambda level, *_: level), r"Mine.update must return \(level, growth\), two numbers, got"),
    (lambda: control(follow=lambda level, *_: level), r"Mine.follow must return \(level, growth\), two numbers, got"),
    (lambda: control(update=lambda level, growth, _: (None, growth)), "Mine.update .* two numbers, got None"),
    (lambda: control(update=lambda level, growth, _: (-level, growth)), r"not negative, got -.*ops.maximum"),
    (
        lambda: lg.LevenbergMarquardt(rule=part(lg.controls.Schedule, at=lambda *_: None)),
        "Mine.at must return the level, a number, got None",
    ),
    (lambda: later(part(lg.controls.Schedule, at=lambda *_: None)), "Mine.at must return a number, got None"),
    (lambda: lg.methods.LeastSquares(rule=part(lg.controls.Control, update=lambda *_: 1.0)), "Mine.update .* two numb"),
    (
        lambda: descent(step=lambda model, *_: -model.gradient),
        r"Mine.step must return an lg.descents.Trial\(.* got arr",
    ),
    (lambda: descent(step=lambda *_: None), "Mine.step must return an lg.descents.Trial.*, got None"),
    (
        lambda: descent(step=trial(np.zeros(3), 1.0)),
        r"Mine.step .* for its direction, an array of shape \(2,\)",
    ),
    (
        lambda: descent(step=trial(np.zeros(2), None)),
        "Mine.step .* with a number for predicted, got None",
    ),
    (
        lambda: descent(query=lambda *_: None, step=lambda *_: None),
        r"Mine.query must return \(kept, products\).* None",
    ),
    (
        lambda: lg.SecondOrder(descent=lg.descents.Momentum(part(lg.descents.Descent, step=lambda *_: None))),
        "Mine.step must return an lg.descents.Trial",
    ),
    (lambda: search(lambda line: 1.0), r"Mine.search must return an lg.searches.Found\(line, length.*, got 1.0"),
    (
        lambda: search(lambda line: lg.searches.Found(line, 1.0, 0.0, None, 1)),
        "Mine.search must return a Found with a number for accepted, got None",
    ),
    (
        lambda: first(update=lambda space, gradient, *_: -gradient),
        r"Mine.update must return \(step, kept\), got",
    ),
    (
        lambda: first(update=lambda space, gradient, kept, *_: (gradient[:1], kept)),
        r"Mine.update must return, for the step, an array of shape \(2,\)",
    ),
    (
        lambda: lg.LevenbergMarquardt(solver=lg.CG(stop=part(object, begin=lambda *_: None, look=lambda *_: 1))),
        r"Mine.look must return \(code, memory\), got 1",
    ),
    (
        lambda: lg.LevenbergMarquardt(
            solver=lg.CG(preconditioner=part(lg.preconditioners.Recipe, finish=lambda *_: 1))
        ),
        r"Mine.finish must return a linear operator .* such as lg.Diagonal\(1 / diagonal\), got a int",
    ),
]


@pytest.mark.parametrize(("method", "why"), WRONG)
def test_what_a_part_returns_is_looked_at(method, why):
    with pytest.raises((TypeError, ValueError), match=why):
        lg.minimize(FIT, np.ones(2), method(), max_steps=4)


def test_a_condition_on_what_is_traced_is_told_with_the_member_that_has_it():
    jnp = pytest.importorskip("jax.numpy")

    @lg.record
    class Halved(lg.controls.Control):
        def update(self, ops, level, growth, ratio):
            return (0.5 if ratio > 0.5 else 2.0) * level, growth

    bowl = lg.Objective.from_residuals(lambda p: p - 3.0)
    with pytest.raises(TypeError, match="boolean") as caught:
        lg.minimize(bowl, jnp.zeros(2), lg.LevenbergMarquardt(rule=Halved(), damping=1.0))
    (told,) = [note for note in caught.value.__notes__ if "ops.where" in note]
    assert "Halved.update asks for a value where JAX compiles it" in told
    with pytest.raises(TypeError, match="boolean") as caught:
        lg.minimize(lg.Objective.from_residuals(lambda p: p if p[0] > 0 else -p), jnp.zeros(2))
    assert any("jax.numpy.where" in note for note in caught.value.__notes__)
