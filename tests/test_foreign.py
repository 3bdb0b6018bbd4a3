"""Arguments by the names that SciPy, torch and training loops have for them: each door says what to write."""

import inspect

import numpy as np
import pytest
import scipy.optimize

import linop_gn as lg
from linop_gn.foreign import _HERE, advised


def residuals(p):
    return p - np.array([1.0, 2.0])


FIT = lg.Objective.from_residuals(residuals, jacobian=lambda p: np.eye(2))
A = lg.Diagonal(np.array([1.0, 2.0]))
DOORS = {
    "least_squares": lambda **k: lg.least_squares(residuals, [0.0, 0.0], **k),
    "curve_fit": lambda **k: lg.curve_fit(lambda t, a: a * t, [1.0, 2.0], [1.0, 2.0], **k),
    "minimize": lambda **k: lg.minimize(FIT, np.zeros(2), **k),
    "Objective": lambda **k: lg.Objective(residuals, lg.losses.SquaredError(), (np.ones(2), np.ones(2)), **k),
    "from_residuals": lambda **k: lg.Objective.from_residuals(residuals, **k),
    "LevenbergMarquardt": lambda **k: lg.LevenbergMarquardt(**k),
    "FirstOrder": lambda **k: lg.FirstOrder(lg.optimisers.SGD(), **k),
    "Adam": lambda **k: lg.optimisers.Adam(**k),
    "CrossEntropy": lambda **k: lg.losses.CrossEntropy(**k),
    "CG": lambda **k: lg.CG(**k),
    "LSMR": lambda **k: lg.LSMR(**k),
    "solve": lambda **k: lg.solve(A, np.ones(2), **k),
    "eigsh": lambda **k: lg.eigsh(A, **k),
}


@pytest.mark.parametrize(
    ("door", "given", "words"),
    [
        ("least_squares", "tr_solver", r"solver=lg\.LSMR\(\)"),
        ("least_squares", "maxfev", "here it is max_nfev="),
        ("least_squares", "epsfcn", r"diff_step=epsfcn \*\* 0.5"),
        ("least_squares", "Dfun", "here it is jac="),
        ("least_squares", "x_sclae", "did you mean 'x_scale'"),
        ("least_squares", "absolute_sigma", r"fit\.covariance\(absolute_sigma=True\)"),
        ("curve_fit", "tr_options", r"solver=lg\.LSMR\(\)"),
        ("curve_fit", "weights", "sigma=1 / weights"),
        ("minimize", "maxiter", "here it is max_steps="),
        ("minimize", "epochs", "here it is passes="),
        ("minimize", "damping", r"lg\.LevenbergMarquardt\(damping=\)"),
        ("Objective", "weight_decay", "here it is l2="),
        ("minimize", "batch_size", "batches=loader"),
        ("CrossEntropy", "weights", "here it is weight="),
        ("Objective", "reduction", r"one of lg\.losses"),
        ("from_residuals", "weight_decay", "here it is l2="),
        ("LevenbergMarquardt", "lr", "damping= shortens it"),
        ("LevenbergMarquardt", "momentum", r"lg\.optimisers\.SGD"),
        ("FirstOrder", "lr", "here it is rate="),
        ("Adam", "betas", "here it is b1="),
        ("CG", "tol", "here it is rtol="),
        ("LSMR", "rtol", "here it is atol="),
        ("CG", "maxiter", "here it is max_steps="),
        ("solve", "M", r"lg\.CG\(preconditioner=\)"),
        ("eigsh", "sigma", r"lg\.inverse"),
        ("eigsh", "v0", "here it is start="),
    ],
)
def test_a_foreign_name_is_told_what_it_is_here(door, given, words):
    with pytest.raises(TypeError, match=rf"there is no argument '{given}'.*{words}"):
        DOORS[door](**{given: 1})


@pytest.mark.parametrize("theirs", [scipy.optimize.least_squares, scipy.optimize.curve_fit, scipy.optimize.minimize])
def test_every_argument_of_scipys_is_taken_or_explained(theirs):
    ours = inspect.signature(lg.curve_fit if theirs is scipy.optimize.curve_fit else lg.least_squares).parameters
    explained = {*_HERE, "fun", "f", "xdata", "ydata", "p0", "kwargs"}
    assert {name for name in inspect.signature(theirs).parameters if name not in ours} <= explained


def test_arguments_without_a_name_are_counted():
    with pytest.raises(TypeError, match=r"Objective is called as Objective\(model, loss, data\), and was given 4 arg"):
        lg.Objective(residuals, lg.losses.SquaredError(), np.ones(2), np.ones(2))
    with pytest.raises(TypeError, match=r"called as least_squares\(fun, x0, jac, bounds\), and was given 5"):
        lg.least_squares(residuals, [0.0, 0.0], "2-point", (-9, 9), "trf")
    with pytest.raises(TypeError, match=r"Diagonal \+ 0\.1: write lg\.Damped\(A, 0\.1\)"):
        A + 0.1


def test_what_a_door_raises_itself_stays_as_it_is():
    @advised
    def door(a, *, maximum=1):
        return a()

    with pytest.raises(TypeError, match="unexpected keyword argument 'tol'"):
        door(lambda: inner(tol=1))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        door(maximum=2)
    assert inspect.signature(door) == inspect.signature(door.__wrapped__)


def test_a_door_that_takes_any_name_is_told_what_it_lacks():
    """``record`` makes a door of each constructor, those of users' own among them."""

    @lg.record
    class Named:
        a: int

        def __init__(self, a, **options):
            object.__setattr__(self, "a", a)

    @lg.record
    class Many:
        a: int

        def __init__(self, *parts, key):
            object.__setattr__(self, "a", parts)

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        Named(tol=1)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'key'"):
        Many(1, 2, 3)


def inner():
    """Takes nothing."""
