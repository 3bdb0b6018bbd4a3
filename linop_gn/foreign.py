"""Arguments by the names that other libraries have for them: a door that lacks one says what to write instead.

SciPy's ``least_squares``, ``leastsq``, ``curve_fit``, ``minimize`` and ``linalg`` solvers, torch's optimisers and
losses, and what training loops call things. One table serves every door: a name stands for those that it has here, of
which the door may have one, and for a sentence where it has none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

__all__ = ["advised", "unknown"]

F = TypeVar("F", bound=Callable[..., Any])

_STEPS = "max_steps= of lg.minimize and lg.least_squares limits the steps, steps= and max_steps= of solvers theirs"
_DECAY = "lg.Objective(..., l2=) is in value, gradient and curvature; AdamW's is weight_decay= of lg.SecondOrder(...) "
_DECAY += "and of lg.optimisers.Adam"
_RATE = "methods judge the length of a step: damping= shortens it, search= chooses it; rate= is of lg.FirstOrder"
_MOMENTUM = "lg.optimisers.SGD(momentum=) has it for lg.FirstOrder, lg.descents.Momentum(...) for other methods"
_LOSS = "it belongs to the loss: lg.Objective takes one of lg.losses, or a loss module with its settings"
_TESTS = "what ends a run is of the method, lg.LevenbergMarquardt(rtol=, ftol=, xtol=), or of the solver, lg.CG(rtol=)"
_WATCH = "watch=[lg.ProgressBar()] shows a run, and any function of a look is a watcher"
_BATCHES = "minibatches are batches=loader of lg.minimize, passes= how often to go through them"
_SOLVER = "solver=lg.LSMR() or lg.CG() takes products with the Jacobian, which is factored otherwise"
_DAMPING = "it is of the method, lg.LevenbergMarquardt(damping=), or of the operator, lg.Damped(A, damping)"
_DERIVATIVES = "derivatives are the framework's own, or jacobian=, jvp=, vjp= of lg.Objective, gradient= and hvp= of "
_DERIVATIVES += "lg.Objective.from_function"
_SIGMA = "in fits divide the residuals by it, or call lg.curve_fit(..., sigma=); eigenvalues near it are those of "
_SIGMA += "lg.inverse(A - sigma * lg.Identity(A.domain), solver)"
_BOUNDS = "lg.least_squares takes bounds; elsewhere write the parameter as a function of a free one, such as exp"
_PARTS = "its settings are keywords of their own, without a dict of options"
_CONDITIONED = "lg.CG(preconditioner=) takes one"
_BOUND = "bind it: functools.partial(f, ...), or hand it over as the objective's data"

_HERE: dict[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(
        ("maxiter", "max_iter", "maxit", "max_iters", "max_iterations", "iterations", "n_iter", "niter", "num_steps"),
        (("max_steps", "steps"), _STEPS),
    ),
    **dict.fromkeys(("maxfev", "max_nfev", "max_eval", "maxfun"), (("max_nfev", "max_steps"), _STEPS)),
    **dict.fromkeys(("max_steps", "steps"), (("max_steps", "steps"), _STEPS)),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs", "epoch"), (("passes",), _BATCHES)),
    **dict.fromkeys(("dataloader", "loader", "batches"), (("batches",), _BATCHES)),
    "batch_size": ((), _BATCHES),
    **dict.fromkeys(("tol", "rtol", "atol", "ftol", "xtol", "gtol", "eps"), (("rtol", "ftol", "atol"), _TESTS)),
    **dict.fromkeys(("weight_decay", "ridge", "regularization", "l2_regularization"), (("l2",), _DECAY)),
    **dict.fromkeys(("l2", "alpha", "lam", "lambda_"), (("l2", "damping"), _DECAY)),
    **dict.fromkeys(("damp", "damping"), (("damping",), _DAMPING)),
    **dict.fromkeys(("lr", "learning_rate", "step_size"), (("rate",), _RATE)),
    **dict.fromkeys(("momentum", "nesterov", "beta"), (("momentum",), _MOMENTUM)),
    "betas": (("b1",), _MOMENTUM),
    **dict.fromkeys(("weight", "reduction", "ignore_index", "label_smoothing", "pos_weight"), ((), _LOSS)),
    **dict.fromkeys(("criterion", "loss_fn", "loss_function"), (("loss",), _LOSS)),
    **dict.fromkeys(("callback", "callbacks", "verbose", "disp", "progress", "iprint"), (("watch",), _WATCH)),
    **dict.fromkeys(("tr_solver", "tr_options", "lsmr_tol"), ((), _SOLVER)),
    "solver": (("method",), "it is of the method, lg.LevenbergMarquardt(solver=), or goes to lg.solve(A, b, solver)"),
    **dict.fromkeys(("jac", "Dfun", "fprime", "grad", "gradient"), (("jac", "jacobian"), _DERIVATIVES)),
    **dict.fromkeys(("hess", "hessp", "hessian"), (("hvp",), _DERIVATIVES)),
    "col_deriv": ((), "jac= returns the Jacobian (m, n), a row for each residual: transpose yours"),
    "epsfcn": ((), "it is the square of a step: write diff_step=epsfcn ** 0.5"),
    "diff_step": ((), "finite differences are lg.least_squares's, which takes it"),
    "diag": ((), "it is one over the sizes: write x_scale=1 / diag"),
    "x_scale": ((), "sizes of the parameters are x_scale= of lg.least_squares and of methods"),
    "factor": ((), "it bounds MINPACK's first step; here damping= of lg.methods.LeastSquares does"),
    "full_output": ((), "the result has all of it: .nfev, .fun, .message, .covariance()"),
    "sigma": ((), _SIGMA),
    "weights": (("weight",), "they are 1 / sigma: divide by sigma, or write sigma=1 / weights of lg.curve_fit"),
    "absolute_sigma": ((), "it is of the result: fit.covariance(absolute_sigma=True)"),
    "workers": ((), "evaluations of one model follow each other: vectorise it"),
    "options": ((), _PARTS),
    "bounds": ((), _BOUNDS),
    "constraints": ((), _BOUNDS),
    "method": (("solver",), "it is the argument after the parameters, as lg.minimize(objective, params, method)"),
    **dict.fromkeys(("M", "precond", "preconditioner"), (("preconditioner",), _CONDITIONED)),
    **dict.fromkeys(("v0", "v_init"), (("start",), "")),
    "ncv": (("basis",), ""),
    **dict.fromkeys(("args", "kwargs"), ((), _BOUND)),
    "x0": (("params",), "where a run begins is an argument of lg.minimize, lg.least_squares and lg.solve"),
}
"""Of a name elsewhere: what it may be called here, the likeliest first, and what to say where a door has none."""


def unknown(owner: str, given: str, known: Iterable[str]) -> TypeError:
    """The error for the argument ``given``, which is none of those ``known`` to ``owner``.

    >>> print(unknown("SGN", "serach", ["search", "level"]))
    SGN: there is no argument 'serach'; did you mean 'search'?
    >>> print(unknown("least_squares", "maxfev", ["max_nfev", "max_steps"]))
    least_squares: there is no argument 'maxfev'; here it is max_nfev=.
    """
    from difflib import get_close_matches  # which only mistakes need

    known = list(known)
    names, sentence = _HERE.get(given, ((), ""))
    here = [name for name in names if name in known]
    near = get_close_matches(given, known, 1, 0.75 if sentence else 0.6)
    if here:
        hint = f"; here it is {here[0]}=."
    elif sentence:
        hint = f": {sentence}."
    elif near:
        hint = f"; did you mean {near[0]!r}?"
    else:
        hint = f"; it takes {', '.join(known)}."
    return TypeError(f"{owner}: there is no argument {given!r}{hint}")


def advised(door: F) -> F:
    """The door, whose ``TypeError`` for a keyword that it lacks says what to write instead.

    >>> @advised
    ... def run(objective, *, max_steps=3):
    ...     return max_steps
    >>> run(None, maxiter=5)
    Traceback (most recent call last):
    ...
    TypeError: run: there is no argument 'maxiter'; here it is max_steps=.
    """

    @wraps(door)
    def opened(*args: Any, **options: Any) -> Any:
        try:
            return door(*args, **options)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # of the call itself
                explain(door, len(args), options)
            raise

    return opened  # type: ignore[return-value]


def explain(door: Callable[..., Any], count: int, options: Iterable[str]) -> None:
    """Raise what is to be said of a call with names, or with more arguments, than ``door`` has."""
    signature, owner = inspect.signature(door).parameters, door.__qualname__.removesuffix(".__init__")
    kinds = {p.kind for p in signature.values()}
    for name in () if inspect.Parameter.VAR_KEYWORD in kinds else options:
        if name not in signature:
            raise unknown(owner, name, [known for known in signature if known not in ("self", "cls")]) from None
    given = [p.name for p in signature.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if count > len(given) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        call, own = ", ".join(name for name in given if name not in ("self", "cls")), len({"self", "cls"} & {*given})
        raise TypeError(
            f"{owner} is called as {owner}({call}), and was given {count - own} arguments without a name; others go by "
            "name."
        ) from None
