"""Least squares of a function: the door with SciPy's names, on every backend, and what a fit tells.

    minimise  F(x) = 1/2 sum_i C^2 rho(r_i(x)^2 / C^2)    subject to  lower <= x <= upper

by :class:`linop_gn.methods.LeastSquares`. Arguments mean what they mean in ``scipy.optimize.least_squares``; what
differs:

* ``x_scale`` None scales by the magnitudes of x0, not by 1 (SciPy) or by the Jacobian's columns (MINPACK).
* ``ftol``, ``xtol`` and ``gtol`` are rounding unless given, and compare what the *undamped* model says: a success is a
  fact about the point, and ``gtol`` is the cosine between residuals and columns, as in MINPACK.
* x may be a tree of arrays of any framework. JAX and torch differentiate ``fun``; for NumPy and CuPy it comes with
  ``jac`` or, failing that, finite differences are taken, and the result says so.
* ``status`` is a :class:`linop_gn.Status`; ``scipy_status`` is SciPy's number for it.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from .arguments import called, require_number, whole
from .curvature.differences import Differences, Remembered, sparsity
from .curvature.losses import Arctan, Cauchy, Huber, Loss, Robust, SoftL1, SquaredError
from .curvature.objective import Objective
from .curvature.term import joined
from .dispatch import backend_of, how_to_bring, owner_of
from .foreign import advised
from .given import Values, as_start, as_tree, bounded
from .methods.base import ServedMethod
from .methods.checkpoint import Checkpoint, restored
from .methods.fit_state import Here
from .methods.fitted import LeastSquaresResult, entries
from .methods.generators import Generators
from .methods.least_squares import LeastSquares
from .methods.problem import MinimizeProblem
from .methods.running import Run, began, in_a_program, stretched
from .methods.state import State
from .protocols import Array, Backend, Scalar, Tree, Vector
from .records import Partial, fields, rebuild, replace
from .run.loop import Look, Watcher, watchers_of
from .run.watch import as_scipy_calls, found
from .spaces import Space

__all__ = ["LeastSquaresResult", "least_squares"]

_LOSSES: dict[str, type[Robust]] = {"huber": Huber, "soft_l1": SoftL1, "cauchy": Cauchy, "arctan": Arctan}
_DIFFERENCES, _LIKE = ("2-point", "3-point"), "(x, *args, **kwargs)"


@advised
def least_squares(
    fun: Callable[..., Any],
    x0: Tree,
    jac: Any = None,
    bounds: Any = (-math.inf, math.inf),
    *,
    ftol: Scalar | None = None,
    xtol: Scalar | None = None,
    gtol: Scalar | None = None,
    x_scale: Any = None,
    loss: Any = "linear",
    f_scale: Scalar = 1.0,
    diff_step: float | None = None,
    jac_sparsity: Any = None,
    solver: Any = None,
    max_nfev: Scalar | None = None,
    max_steps: int = 500,
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    callback: Callable[..., Any] | None = None,
    verbose: int = 0,
    derivatives: str | None = None,
    method: LeastSquares | None = None,
    watch: Sequence[Watcher] = (),
    every: int | None = None,
    state: State | None = None,
    checkpoint: Any = None,
) -> LeastSquaresResult:
    """Minimise the squares of the residuals ``fun(x, *args, **kwargs)``, or a robust loss of them, from ``x0``.

    Parameters
    ----------
    fun
        Residuals: one array of any shape, of the framework of x.
    x0
        Start: an array or a tree of arrays, which are not changed; a number, or a list or dict of numbers, is NumPy's.
        ``lmfit.Parameters`` are a dict of numbers with ``bounds``: value, min, max, and vary.
    jac
        ``jac(x, *args, **kwargs)``: the Jacobian (m, n), dense or scipy.sparse, or a tree of arrays. None: the
        framework's own derivatives, and where there are none ``"2-point"`` differences; ``"3-point"`` ones are more
        accurate. (For NumPy and CuPy; JAX and torch differentiate.)
    bounds
        ``(lower, upper)``, each a number, an array or a tree like x0; equal ones fix a parameter. SciPy's ``Bounds``.
    ftol, xtol, gtol
        What ends the run, relative and undamped: see :mod:`linop_gn.methods.least_squares`. None: rounding.
    x_scale
        Sizes of the parameters: a number, an array or a tree like x0, or ``"jac"``. None: the magnitudes of x0.
    loss
        ``"linear"``, ``"huber"``, ``"soft_l1"``, ``"cauchy"``, ``"arctan"``, or one of ``lg.losses``.
    f_scale
        C, where outliers begin; of no effect for ``"linear"``.
    diff_step
        Relative step of finite differences.
    jac_sparsity
        Of finite differences: an array or sparse matrix (m, n), not zero where the Jacobian may not be.
    solver
        ``lg.CG(...)`` or ``lg.LSMR(...)`` to take products with the Jacobian instead of factoring it. None: factored
        for few parameters, else by products; a sparse Jacobian and a linear operator are never made dense.
    max_nfev, max_steps
        Limits on evaluations and on steps. ``max_steps`` is a size of the program, not data.
    callback
        Called with each step's x, or with SciPy's ``intermediate_result=``; raising StopIteration stops the run.
    verbose
        1: print the result; 2: and each step.
    derivatives
        The framework that ``fun`` is written in, where it is not that of x: as for :class:`linop_gn.Objective`.
    method
        A ``lg.methods.LeastSquares`` whose other settings are used.
    watch, every, checkpoint
        As for :func:`linop_gn.minimize`.
    state
        ``fit.state``, or what an interrupted fit left as ``error.state``: where to go on from, on these data or others.
        x0 is then not looked at; ``max_steps`` limits what comes now, ``max_nfev`` all since the start.

    >>> import numpy as np, linop_gn as lg
    >>> t, y = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([2.1, 1.2, 0.8, 0.4, 0.3])
    >>> fit = lg.least_squares(lambda x: x[0] * np.exp(-x[1] * t) - y, [1.0, 1.0])
    >>> fit.x.round(3), fit.standard_errors().round(3), fit.success
    (array([2.087, 0.515]), array([0.051, 0.024]), True)
    >>> y[2] = 9.0  # an outlier
    >>> lg.least_squares(lambda x: x[0] * np.exp(-x[1] * t) - y, [1.0, 1.0], loss="cauchy", f_scale=0.1).x.round(1)
    array([2.1, 0.5])

    Raises
    ------
    TypeError, ValueError
        For arguments that cannot be used, each with what would do.
    """
    if not callable(fun):
        raise TypeError(f"least_squares: fun must be a function of x, got {type(fun).__qualname__}.")
    if x0 is None and state is None:
        raise TypeError("least_squares: x0 is None: give a start, or state= to go on from.")
    named = bounded(x0)
    if named is not None:
        if not (isinstance(bounds, tuple) and bounds == (-math.inf, math.inf)):
            raise ValueError("least_squares: the parameters have min and max of their own: leave bounds= out.")
        fun, (x0, bounds) = Partial(_by_value, fun), named
    x0 = as_start(x0) if state is None else _went_to(state)
    ops, space = backend_of(x0), Space.of(x0, "start")
    args, kwargs = tuple(map(as_tree, args)), {name: as_tree(value) for name, value in (kwargs or {}).items()}
    frame, data = _frame(ops, space, args, kwargs, alone=derivatives is None)
    residuals: Any = Partial(_residuals, None if derivatives else ops, fun, frame)
    jacobian, how = _jacobian(ops, space, residuals, jac, x0, bounds, diff_step, derivatives, frame, jac_sparsity)
    if ops.calculus is None and derivatives is None:
        residuals = Remembered(ops, residuals)
    objective = Objective.from_residuals(residuals, data, jacobian=jacobian, derivatives=derivatives)
    objective = rebuild(Objective, fields(objective) | {"loss": _loss(loss, f_scale)})
    lower, upper = _bounds(ops, space, bounds, x0)
    settings = {"ftol": ftol, "xtol": xtol, "gtol": gtol, "max_nfev": max_nfev, "solver": solver}
    scale = None if x_scale is None or isinstance(x_scale, str) else _vector(ops, space, x_scale, "x_scale")
    if scale is not None and ops.is_concrete(scale) and not bool(ops.namespace().all((scale > 0) & (scale < math.inf))):
        raise ValueError(f"least_squares: x_scale must be positive and finite, got {x_scale!r}.")
    if isinstance(x_scale, str) and x_scale != "jac":
        raise ValueError(f"least_squares: x_scale must be 'jac', numbers or None, got {x_scale!r}.")
    if not isinstance(method, LeastSquares | None):
        raise TypeError(
            f"least_squares: method= is an lg.methods.LeastSquares, got {method!r}: leave SciPy's 'trf', 'dogbox' and "
            "'lm' out (there is one method, with bounds and without), and run others by lg.minimize."
        )
    method = replace(
        LeastSquares() if method is None else method,
        **{name: value for name, value in settings.items() if value is not None},
        **({} if x_scale is None else {"scale": scale, "column_norms": isinstance(x_scale, str)}),
        lower=lower,
        upper=upper,
    )
    max_steps = min(2**31 - 1, whole("least_squares", "max_steps", max_steps))
    every = every if every is None else whole("least_squares", "every", every, 1)
    point = objective.at(x0)
    point.check_data()
    problem = MinimizeProblem(point.objective, point.x, point.space, max_steps)
    watch = (
        watchers_of(watch)
        + ([] if callback is None else [as_scipy_calls(callback, partial(found, space), _told)])
        + [_printed] * (verbose > 1)
    )
    made = _fitted(ServedMethod(method), problem, watch, every, state, checkpoint, how)
    if entries(made.fun) == 1 < space.size:
        warnings.warn(
            f"least_squares: fun returned one number for {space.size} parameters, and it is squared here: return the "
            "residuals themselves, one for each datum. A function that is a sum already is minimised by "
            "lg.minimize(lg.Objective.from_function(fun), x0, lg.TrustRegion()).",
            stacklevel=3,
        )
    if verbose:
        print(made)
    return made


def _by_value(fun: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    return called("fun", _LIKE, fun, Values(x), *args, **kwargs)


def _went_to(state: Any) -> Tree:
    """Where a state's run began."""
    if isinstance(state, State) and isinstance(state.method, LeastSquares):
        return state.space.unpack(state.space.backend.copy(state.start))
    of = f"a state of {type(state.method).__name__}" if isinstance(state, State) else type(state).__qualname__
    raise TypeError(f"least_squares: state= is what fit.state or error.state gave, got {of}.")


def _fitted(
    served: ServedMethod,
    problem: MinimizeProblem,
    watch: list[Watcher],
    every: int | None,
    state: State | None,
    checkpoint: Any,
    how: str,
) -> LeastSquaresResult:
    """The fit, as one program where nothing has to be looked at on the way."""
    ops, alone = problem.backend, not watch and state is None and checkpoint is None
    known = ops.is_concrete((problem.start, problem.objective))
    if not known or (alone and "compiled" in ops.capabilities):
        if state is not None or checkpoint is not None:
            raise TypeError("least_squares: inside a compiled program there is no state= and no checkpoint=.")
        carry = in_a_program("least_squares", served, problem, int(problem.max_steps), watch, every)
        known = known and ops.is_concrete(carry.state)
        ended = State(carry.state, problem.start, served.method, problem.space)
        rows = ops.rows(carry, 0, len(carry.rows)) if isinstance(carry.rows, list) else carry.rows
        made = _result(problem, ended, carry.state.status, rows, 0, how)
        return made if known else replace(made, state=None)
    drawn = Generators()
    kept = None if checkpoint is None else Checkpoint(checkpoint, every, drawn)
    resumed = kept is not None and kept.exists()
    if resumed and state is not None:
        raise ValueError(f"least_squares: {checkpoint} holds a state to go on from, and state= another: choose one.")
    if state is not None:
        problem = replace(problem, start=state.start, max_steps=int(state.steps) + int(problem.max_steps))
    renew = state is not None
    if resumed:
        state = restored(checkpoint, served, problem, began(served, problem).state.own, drawn, same_data=True)
        problem = replace(problem, start=state.start)
    begin = partial(began, served, problem)
    if state is not None:
        begin = partial(stretched, served, problem, state.own, renew, 0)
    plan = itertools.repeat((problem, False))
    run = Run(served, problem, begin, plan, False, lambda run: None if kept is None else kept.keep(run, None))
    del begin, state

    def result(run: Run) -> LeastSquaresResult:
        return _result(problem, run.state, run.code, np.asarray(run.rows), run.first, how)

    try:
        return run.watched(watch, every or (1 if watch else None), result, "least_squares")
    finally:
        if kept is not None:
            kept.save(run)


def _result(
    problem: MinimizeProblem, state: State, code: Scalar, rows: Any, first: Scalar, how: str
) -> LeastSquaresResult:
    """What the last state says."""
    ops, space, method, own = problem.backend, problem.space, cast(LeastSquares, state.method), state.own
    known = ops.call(_known, method, problem, own.here)
    return LeastSquaresResult(
        code=code,
        steps=own.steps,
        products=own.products,
        rows=rows,
        names=method.columns,
        method="least_squares",
        value=own.value,
        gradient_norm=own.gradient_norm,
        damping=own.damping,
        state=state,
        first=first,
        nfev=own.evaluations,
        njev=own.linearisations,
        sizes=own.here.sizes,
        space=space,
        derivatives=how,
        **known,
    )


def _known(method: LeastSquares, problem: MinimizeProblem, here: Here) -> dict[str, Any]:
    """What a result says of the accepted point."""
    ops, xp, space = problem.backend, problem.backend.namespace(), problem.space
    free = method.free(ops, here.x, here.gradient)
    free = xp.ones_like(here.x) if free is None else free
    mask = xp.zeros_like(here.x)
    if method.lower is not None:
        mask = xp.where(here.x <= method.lower, mask - 1.0, xp.where(here.x >= method.upper, mask + 1.0, mask))
    fun = here.outputs if here.outputs is not None else problem.at(here.x).outputs
    units, size = xp.where(abs(here.x) > here.sizes, abs(here.x), here.sizes), xp.sqrt(xp.sum(here.q * here.q))
    effects = xp.sqrt(here.squares) * here.D * units
    return {
        "params": space.unpack(ops.copy(here.x)),
        "fun": ops.copy(fun),
        "grad": space.unpack(ops.copy(here.gradient)),
        "active_mask": space.unpack(mask),
        "factor": here.linear.factor(here.D, here.sizes * free),
        "free": free,
        "effects": xp.where(size > 0, effects / xp.where(size > 0, size, xp.ones_like(size)), xp.ones_like(effects)),
    }


# what users hand over


def _frame(
    ops: Backend, space: Space, args: tuple[Any, ...], kwargs: dict[str, Any], alone: bool
) -> tuple[tuple[Any, ...], Any]:
    """The arguments in which arrays are missing, and these: data, and no part of a program. None: there are none.

    Where ``fun`` is written in the framework of x, unless that is NumPy, NumPy's arrays are brought to it.
    """
    names, leaves, structure = ops.flatten((args, kwargs))
    for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)) if alone and ops.name != "numpy" else ():
        owner = None if ops.is_array(leaf) else owner_of(leaf)
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
            leaves[i] = ops.asarray(leaf, space.dtype if leaf.dtype.kind == "f" else leaf.dtype.name, space.device)
        elif owner not in (None, ops):
            what = f"least_squares: argument {name.partition('.')[2] or name}"
            raise TypeError(f"{what} belongs to {owner.name} but x0 to {ops.name}; {how_to_bring(ops)}.")
    missing = tuple(... if ops.is_array(leaf) else leaf for leaf in leaves)
    return (ops, structure, missing), tuple(filter(ops.is_array, leaves)) or None


def _arguments(frame: tuple[Any, ...], data: Any) -> Any:
    ops, structure, missing = frame
    given = iter(data or ())
    return ops.unflatten(structure, [next(given) if leaf is ... else leaf for leaf in missing])


def _residuals(
    ops: Backend | None, fun: Callable[..., Any], frame: tuple[Any, ...], x: Tree, data: Any = None
) -> Array:
    """The residuals as a function of x and data; ``ops`` is None for a function that is written elsewhere."""
    args, kwargs = _arguments(frame, data)
    return _array(ops, called("fun", _LIKE, fun, x, *args, **kwargs), x)


def _array(ops: Backend | None, z: Any, x: Tree) -> Any:
    """Residuals as an array of at least one axis; lists and numbers are taken where nothing has to follow them."""
    if ops is None:
        return z
    z = z if ops.calculus is not None else joined(ops, z)
    if ops.calculus is None and not ops.is_array(z):
        (like, *_), owner = ops.flatten(x)[1], owner_of(z)
        if owner is not None and owner.calculus is not None:
            warnings.warn(
                f"least_squares: x0 is of {ops.name}, and fun returns arrays of {owner.name}: derivatives are finite "
                f"differences. For exact ones give x0 as an array of {owner.name}, or derivatives={owner.name!r}.",
                stacklevel=2,
            )
        z = None if z is None else np.asarray(z if owner is None else owner.to_numpy(z))
        if z is None or z.dtype.kind not in "biuf":
            got = "None" if z is None else f"what NumPy takes for an array of dtype {z.dtype}"
            raise TypeError(f"least_squares: fun must return an array of residuals, got {got}.")
        _, dtype, device = ops.describe(like)
        z = ops.asarray(z, z.dtype.name if z.dtype.kind == "f" else dtype, device)  # whose precision differences mind
    return ops.namespace().reshape(z, (1,)) if ops.is_array(z) and tuple(z.shape) == () else z


def _jacobian(
    ops: Backend,
    space: Space,
    residuals: Callable[..., Any],
    jac: Any,
    x0: Tree,
    bounds: Any,
    step: float | None,
    derivatives: str | None,
    frame: tuple[Any, ...],
    structure: Any,
) -> tuple[Callable[..., Any] | None, str]:
    """The Jacobian as the objective takes it, and how differences are taken where it is made of them."""
    if callable(jac):
        return Partial(_slope, jac, frame), ""
    if jac is None and (ops.calculus is not None or derivatives is not None):
        return None, ""
    jac = "2-point" if jac is None else jac
    if not isinstance(jac, str) or jac not in _DIFFERENCES:
        got = repr(jac) if isinstance(jac, str) else f"a {type(jac).__qualname__}; if it is constant, lambda x: jac"
        raise ValueError(f"least_squares: jac must be a function, '2-point', '3-point' or None, got {got}.")
    if ops.calculus is not None or derivatives is not None:
        name = derivatives or ops.name
        raise ValueError(
            f"least_squares: jac={jac!r} takes finite differences, and {name} differentiates fun: leave jac out."
        )
    if step is not None:
        require_number("least_squares", "diff_step", step, positive=True)
        if step < np.finfo(space.dtype).eps:
            raise ValueError(
                f"least_squares: diff_step={step!r} is lost in rounding beside x: leave it out, or take 1e-8."
            )
    box = space.pack(x0), *_bounds(ops, space, bounds, x0)
    structure = None if structure is None else sparsity(structure, space)
    return Differences(space, residuals, jac == "3-point", step, box, structure), jac


def _slope(jac: Callable[..., Any], frame: tuple[Any, ...], x: Tree, data: Any = None) -> Any:
    args, kwargs = _arguments(frame, data)
    return called("jac", _LIKE, jac, x, *args, **kwargs)


def _loss(loss: Any, f_scale: Scalar) -> Any:
    require_number("least_squares", "f_scale", f_scale, positive=True)
    if getattr(f_scale, "shape", ()) != ():
        raise ValueError(
            f"least_squares: f_scale is one number, got an array of shape {tuple(f_scale.shape)}: divide the residuals "
            "by theirs, and leave f_scale out."
        )
    if isinstance(loss, Loss):
        if not (isinstance(f_scale, (int, float)) and f_scale == 1.0):
            raise ValueError("least_squares: f_scale is for losses by name; write lg.losses.Huber(width=f_scale).")
        return loss
    if isinstance(loss, str) and loss == "linear":
        return SquaredError(reduction="sum")
    if not isinstance(loss, str) or loss not in _LOSSES:
        raise ValueError(
            f"least_squares: loss must be 'linear', {', '.join(map(repr, _LOSSES))} or one of lg.losses, such as "
            f"lg.losses.Huber(width=0.1, reduction='sum'), got {loss!r}."
        )
    return _LOSSES[loss](width=f_scale, reduction="sum")


def _vector(ops: Backend, space: Space, given: Any, what: str) -> Vector:
    """A flat vector from a number, an array, a list or a tree like x0, of arrays and numbers."""
    given = as_tree(given)
    if isinstance(given, (int, float, list, tuple, np.ndarray, np.number)) and not (
        isinstance(given, (list, tuple)) and any(map(ops.is_array, given))
    ):
        values = np.asarray(given, dtype=np.float64)
        if values.size not in (1, space.size):
            raise ValueError(f"least_squares: the {what} has {values.size} numbers for {space.size} parameters.")
        return ops.asarray(np.broadcast_to(values.reshape(-1), (space.size,)), space.dtype, space.device)
    names, leaves, structure = ops.flatten(given)
    shapes = dict(zip(space.names, zip(space.shapes, space.dtypes, strict=True), strict=True))
    for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if isinstance(leaf, (int, float, np.number)) and name in shapes:
            shape, dtype = shapes[name]
            leaves[i] = ops.asarray(np.full(shape, leaf, np.float64), dtype, space.device)
    return space.pack(ops.unflatten(structure, leaves), what)


_PAIRS = " Of a pair for each parameter tuple(zip(*bounds)) makes (lower, upper)."


def _bounds(ops: Backend, space: Space, bounds: Any, x0: Tree) -> tuple[Vector | None, Vector | None]:
    """Lower and upper bounds; None where there are none."""
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        bounds = bounds.lb, bounds.ub
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(
            f"least_squares: bounds are a pair (lower, upper) of numbers, or of arrays or trees like x0.{_PAIRS}"
        )
    if all(isinstance(b, (int, float)) for b in bounds) and tuple(bounds) == (-math.inf, math.inf):
        return None, None
    lower, upper = (
        _vector(ops, space, b, what) for b, what in zip(bounds, ("lower bound", "upper bound"), strict=True)
    )
    x, xp = space.pack(x0), ops.namespace()
    if ops.is_concrete((x, lower, upper)):
        if not bool(xp.all(lower <= upper)):
            raise ValueError(f"least_squares: each lower bound must be at most the upper one.{_PAIRS}")
        if not bool(xp.all((lower <= x) & (x <= upper))):
            outside = [i for i in range(space.size) if not bool(lower[i] <= x[i]) or not bool(x[i] <= upper[i])]
            i, more = outside[0], f" (and {len(outside) - 1} more)" if len(outside) > 1 else ""
            raise ValueError(
                f"least_squares: x0 lies outside of the bounds: number {i} is {float(x[i]):.6g}, and its bounds are "
                f"{float(lower[i]):.6g} and {float(upper[i]):.6g}{more}.{_PAIRS if space.size == 2 else ''}"
            )
    return lower, upper


# watching


def _told(state: Any) -> dict[str, Any]:
    return {"cost": state.value, "nfev": state.evaluations}


def _printed(look: Look) -> None:
    """A line for each step."""
    row = {name: column[-1] for name, column in look.rows.items()}
    value, slope, damping = (row[name] for name in ("value", "gradient_norm", "damping"))
    print(f"step {look.step:4d}  cost {value:.6e}  optimality {slope:.2e}  damping {damping:.1e}")
