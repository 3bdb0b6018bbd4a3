"""Methods for ``scipy.optimize.minimize``, and objectives for its own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..arguments import require_instance, require_number
from ..curvature.at_point import Hessian
from ..curvature.differences import Differences
from ..curvature.objective import Objective
from ..methods.base import Method
from ..methods.named import TrustRegion
from ..minimize import minimize
from ..protocols import Tree
from ..records import replace
from ..run.status import Status
from ..run.watch import as_scipy_calls, found
from ..spaces import Space

__all__ = ["ScipyProblem", "scipy_method", "scipy_problem"]

_DIFFERENCES = ("2-point", "3-point", "cs")
_NUMBERS = {Status.MAX_STEPS: 1, Status.NONFINITE: 3, Status.NONFINITE_INPUT: 3, Status.STOPPED: 99}


def scipy_method(method: Method | None = None) -> Callable[..., Any]:
    """``method`` for ``scipy.optimize.minimize(fun, x0, method=...)``; ``lg.TrustRegion()`` by default.

    A method is itself one as well: ``minimize(fun, x0, method=lg.NewtonCG())`` calls it.

    Of what ``minimize`` hands on it takes ``args``, ``jac``, ``hess`` (dense, sparse or a ``LinearOperator``),
    ``hessp``, ``callback`` in both styles, and the options ``maxiter``, ``gtol`` (of the gradient's 2-norm; ``tol`` is
    the same) and ``disp``. Without ``jac`` gradients are central differences, without ``hess`` and ``hessp`` products
    are differences of gradients; the message says so. Without ``gtol`` a run goes on to rounding; where the gradient is
    made of differences, to 1e-5, as SciPy's BFGS.

    Returns
    -------
    callable
        It returns a ``scipy.optimize.OptimizeResult``: ``x`` and ``jac`` in float64, ``success``, ``status`` (0: a
        success; 1: ``maxiter``; 3: not finite; 99: the callback stopped it; 2: anything else), ``message``, ``nit``
        (steps, refused ones too), ``nfev``, ``njev``, ``nhev`` (calls of the functions), and ``result``, an
        :class:`~linop_gn.Result`.

    >>> import numpy as np, linop_gn as lg
    >>> from scipy.optimize import minimize, rosen, rosen_der, rosen_hess_prod
    >>> found = minimize(rosen, np.zeros(3), jac=rosen_der, hessp=rosen_hess_prod, method=lg.scipy_method())
    >>> found.success, found.x.round(6)
    (True, array([1., 1., 1.]))

    Raises
    ------
    TypeError, ValueError
        For a method that is none; at a call, for bounds and constraints, and a curvature that a plain function lacks.
    """
    method = TrustRegion() if method is None else method
    require_instance(
        "scipy_method", method, Method, "an lg.Method such as lg.TrustRegion()", "Solvers of linear systems are none."
    )

    def minimized(
        fun: Callable[..., Any],
        x0: Any,
        args: tuple[Any, ...] = (),
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., Any] | None = None,
        gtol: float | None = None,
        tol: float | None = None,
        disp: bool = False,
        **options: Any,
    ) -> Any:
        from scipy.optimize import OptimizeResult, OptimizeWarning

        if _is_bounded(bounds) or _length(constraints):
            raise ValueError(
                f"scipy_method: {method.title} takes no bounds and no constraints. lg.least_squares takes bounds, of "
                "sums of squares; otherwise leave method= out, and SciPy chooses one that does."
            )
        most = options.pop("maxiter", None)
        if options:
            warnings.warn(f"Unknown solver options: {', '.join(options)}", OptimizeWarning, stacklevel=3)
        x = np.atleast_1d(np.asarray(x0))
        if x.dtype.kind == "c" or x.ndim > 1:
            raise ValueError(f"scipy_method: x0 is a real vector (n,), got {x.dtype} of shape {x.shape}.")
        functions = _Functions(fun, x.astype(np.float64), args, jac, hess, hessp)
        gtol = tol if gtol is None else gtol
        gtol = 1e-5 if gtol is None and functions.by_differences else gtol
        run = _to(method, gtol)
        steps = 200 * x.size if most is None else most
        watch = [] if callback is None else [as_scipy_calls(callback, partial(found, functions.space), _told)]
        result = minimize(functions.objective, x.astype(np.float64), run, max_steps=steps, watch=watch)
        gradient = getattr(result.state.own, "gradient", None)
        gradient = functions.gradient(result.params) if gradient is None else gradient
        told: Any = {
            "x": np.asarray(result.params),
            "fun": float(result.value),
            "jac": np.array(gradient),
            "success": bool(result.succeeded),
            "status": 0 if result.succeeded else _NUMBERS.get(result.status, 2),
            "message": result.status.sentence.replace("max_steps", "maxiter") + functions.caveat,
            "nit": int(result.steps),
            "nfev": functions.values,
            "njev": functions.gradients,
            "nhev": functions.hessians,
            "result": result,
        }
        made = OptimizeResult(**told)
        if disp:
            print(f"{made.message}\n    {method.title}: fun {made.fun:.6g} after {made.nit} steps, {made.nfev} values")
        return made

    return minimized


Method.for_scipy = staticmethod(scipy_method)


def _to(method: Any, gtol: float | None) -> Method:
    """The method that ends at a gradient of norm ``gtol``."""
    if gtol is None:
        return method  # type: ignore[no-any-return]
    require_number("scipy_method", "gtol", gtol)
    if not hasattr(getattr(method, "stopping", None), "atol"):
        raise TypeError(
            f"scipy_method: {method.title} has no test of the gradient's norm, which gtol= and tol= set: leave these "
            "out, or take a method with stopping=lg.methods.Facts()."
        )
    changed: Method = replace(method, stopping=replace(method.stopping, atol=float(gtol)))
    return changed


class _Functions:
    """SciPy's functions as an objective, each call counted."""

    def __init__(self, fun: Any, x0: Any, args: Any, jac: Any, hess: Any, hessp: Any) -> None:
        self.fun, self.jac, self.hess, self.hessp = fun, jac, hess, hessp
        self.args = args if isinstance(args, tuple) else (args,)
        self.values = self.gradients = self.hessians = 0
        self.space = Space.of(x0, "start")
        self.known: tuple[Any, Any] | None = None
        self.latest: tuple[Any, Any] | None = None
        if hess is not None and not callable(hess) and hess not in _DIFFERENCES:
            raise TypeError(
                f"scipy_method: hess is a function of x or one of {', '.join(_DIFFERENCES)}, got "
                f"{type(hess).__qualname__}: quasi-Newton updates belong to SciPy's method='trust-constr'."
            )
        if not callable(jac):
            if jac is True:  # as minimize has split it, unless this is called on its own
                raise TypeError("scipy_method: jac=True is split by scipy.optimize.minimize; give a function here.")
            self.differences = Differences(
                self.space, lambda x: np.array([self.value(x)]), True, None, (x0, None, None)
            )
        self.by_differences = not callable(jac)
        exact = callable(hess) or callable(hessp)
        of = ["the gradient"] * self.by_differences + ["products with the Hessian"] * (not exact)
        self.caveat = f" ({' and '.join(of)}: by finite differences.)" if of else ""
        self.objective = Objective.from_function(self.value, gradient=self.gradient, hvp=self.product)

    def value(self, x: Any) -> Any:
        if self.known is not None and np.array_equal(self.known[0], x):
            return self.known[1]
        self.values += 1
        made = self.fun(np.copy(x), *self.args)
        if made is None:
            raise TypeError("scipy_method: fun returned None, not the value: does it lack a return?")
        made = np.asarray(made, dtype=np.float64)
        if made.size != 1:
            raise ValueError(f"scipy_method: fun must return one number, got shape {made.shape}.")
        self.known = np.copy(x), made.reshape(())
        return self.known[1]

    def gradient(self, x: Any) -> Any:
        if self.by_differences:
            return self.differences(x)[0]
        self.gradients += 1
        return _like(x, "jac returned", self.jac(np.copy(x), *self.args))

    def product(self, x: Any, v: Any) -> Any:
        if callable(self.hess):
            if self.latest is None or not np.array_equal(self.latest[0], x):
                self.hessians += 1
                self.latest = np.copy(x), self._hessian(x)
            return np.asarray(self.latest[1] @ v, dtype=np.float64).reshape(-1)
        if callable(self.hessp):
            self.hessians += 1
            return _like(x, "hessp returned", self.hessp(np.copy(x), np.copy(v), *self.args))
        size = math.sqrt(float(v @ v))
        if size == 0.0:
            return np.zeros_like(x)
        h = np.finfo(np.float64).eps ** (1 / 3) * max(1.0, math.sqrt(float(x @ x))) / size
        return (self.gradient(x + h * v) - self.gradient(x - h * v)) / (2 * h)

    def _hessian(self, x: Any) -> Any:
        made = self.hess(np.copy(x), *self.args)
        made = made if hasattr(made, "shape") and hasattr(made, "__matmul__") else np.asarray(made, dtype=np.float64)
        if tuple(made.shape) != (x.size, x.size):
            raise ValueError(f"scipy_method: hess returned shape {tuple(made.shape)} for {x.size} parameters.")
        return made


def _like(x: Any, what: str, made: Any) -> Any:
    """What a function of the user's ``returned``, as a vector like ``x``."""
    made = np.asarray(made, dtype=np.float64).reshape(-1)
    if made.shape != x.shape:
        raise ValueError(f"scipy_method: {what} {made.size} numbers for {x.size} parameters.")
    return made


def _told(state: Any) -> dict[str, Any]:
    return {"fun": float(state.value)}


def _length(constraints: Any) -> int:
    return len(constraints) if isinstance(constraints, Sequence | dict) else 1


def _is_bounded(bounds: Any) -> bool:
    """Whether any bound is finite."""
    if bounds is None:
        return False
    pairs = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else bounds
    return any(b is not None and math.isfinite(b) for pair in pairs for b in np.atleast_1d(np.asarray(pair, object)))


class ScipyProblem:
    """An objective as ``scipy.optimize.minimize`` takes it; made by :func:`scipy_problem`."""

    def __init__(self, objective: Objective, params: Tree, curvature: Any) -> None:
        self._objective, self._curvature = objective, curvature
        self._space = Space.of(params)
        self._latest: tuple[Any, Any] | None = None
        self.x0 = self._host(self._space.pack(params))
        """The start: float64, flat."""

    def _host(self, v: Any) -> Any:
        return np.array(self._space.in_order(v), dtype=np.float64)

    def params(self, x: Any) -> Tree:
        """The tree of parameters that a flat vector of NumPy's is."""
        space = self._space
        return space.unpack(space.from_order(np.array(x, dtype=np.float64), space.dtype))

    def fun(self, x: Any) -> float:
        """The value."""
        return float(self._objective.value(self.params(x)))

    def jac(self, x: Any) -> Any:
        """The gradient (n,)."""
        return self._host(self._space.pack(self._objective.gradient(self.params(x))))

    def hessp(self, x: Any, p: Any) -> Any:
        """The curvature at x times p (n,): linearised once for each x."""
        if self._latest is None or not np.array_equal(self._latest[0], x):
            self._latest = np.copy(x), self._curvature(self._objective.at(self.params(x)))
        v = self._space.from_order(np.array(p, dtype=np.float64), self._space.dtype)
        return self._host(self._latest[1] @ v)


def scipy_problem(objective: Objective, params: Tree, curvature: Any = Hessian) -> ScipyProblem:
    """An objective of any framework as NumPy functions ``fun``, ``jac``, ``hessp``, and the start ``x0``.

    ``curvature`` is what ``hessp`` multiplies with: ``lg.Hessian``, ``lg.GGN`` or any function from a point to an
    operator. ``.params(x)`` makes a tree like ``params`` of a solution.

    >>> import numpy as np, linop_gn as lg
    >>> from scipy.optimize import minimize
    >>> fit = lg.Objective.from_residuals(lambda p: p["a"] ** 2 - 4.0, jacobian=lambda p: np.diag(2 * p["a"]))
    >>> problem = lg.scipy_problem(fit, {"a": np.ones(2)}, lg.GGN)
    >>> found = minimize(problem.fun, problem.x0, jac=problem.jac, hessp=problem.hessp, method="trust-ncg")
    >>> problem.params(found.x)["a"].round(6)
    array([2., 2.])

    Raises
    ------
    TypeError
        For an objective that is none, or a curvature that is no function.
    """
    require_instance("scipy_problem", objective, Objective, "an lg.Objective", "It knows model, loss and data.")
    if not callable(curvature):
        raise TypeError(f"scipy_problem: curvature is a function of a point, such as lg.GGN, got {curvature!r:.100}.")
    return ScipyProblem(objective, params, curvature)
