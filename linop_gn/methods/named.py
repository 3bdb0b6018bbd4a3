"""The methods that have names, as compositions of :class:`~linop_gn.SecondOrder`: to use, and to read.

=====================  ===========  ==========================  =====================  ===============================
method                 curvature    descent                     level                  search
=====================  ===========  ==========================  =====================  ===============================
:func:`Newton`         Hessian      dense eigendecomposition    damping, constant      fixed length
:func:`NewtonCG`       Hessian      CG, forcing terms           damping, constant      Armijo
:func:`GaussNewton`    GGN          CG                          damping, constant      Armijo
:func:`TrustRegion`    Hessian      GLTR, forcing terms         radius by the ratio    the whole step, or none
:func:`SGN`            GGN          CG, k steps                 damping by the ratio   Armijo, its last length taken
:func:`HessianFree`    GGN          CG, preconditioned, warm    damping by the ratio   CG's iterates, then Armijo
:func:`EGN`            GGN          Cholesky in output space    damping, constant      fixed length
=====================  ===========  ==========================  =====================  ===============================

:func:`LevenbergMarquardt` is the GGN, CG or another solver, damping by the ratio, and the whole step or none;
:func:`LayerwiseGaussNewton` the GGN's blocks, CG in each, damping constant, and the best of a grid of lengths. Every
part can be given as another one: ``lg.NewtonCG(search=lg.searches.Wolfe())``.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from ..arguments import whole
from ..curvature.at_point import GGN, BlockGGN, Hessian
from ..foreign import unknown
from ..preconditioners import EmpiricalFisher
from ..protocols import Scalar
from ..records import data_fields, static_fields
from ..solvers.blockwise import Blockwise
from ..solvers.cg import CG
from ..solvers.forcing import EisenstatWalker
from ..solvers.gram import GramSolve
from ..solvers.stopping import MaxResidual, RelativeProgress
from . import descents, searches
from .controls import Radius, Stages
from .damping import ConstantDamping, Marquardt, Nielsen
from .second_order import SecondOrder
from .stopping import Facts

__all__ = ["EGN", "SGN", "GaussNewton", "HessianFree", "LayerwiseGaussNewton", "LevenbergMarquardt", "Newton"]
__all__ += ["NewtonCG", "TrustRegion"]

_CG, _NIELSEN = CG(rtol=1e-2, max_steps=50), Nielsen()


def _composed(name: str, recipe: dict[str, Any], parts: dict[str, Any]) -> SecondOrder:
    """The recipe with these parts in the places of its own."""
    known = (*data_fields(SecondOrder), *static_fields(SecondOrder))
    for given in parts:
        if given not in known:
            own = (own for own in signature(globals()[name]).parameters if own != "parts")
            raise unknown(name, given, dict.fromkeys((*own, *known)))
    return SecondOrder(**{"name": name, **recipe, **parts})


def LevenbergMarquardt(
    curvature: Callable[..., Any] = GGN,
    solver: Any = _CG,
    damping: Scalar | None = None,
    rule: Any = _NIELSEN,
    model: str = "undamped",
    accept: Scalar = 1e-4,
    rtol: Scalar = 0.0,
    atol: Scalar = 0.0,
    ftol: Scalar | None = None,
    xtol: Scalar | None = None,
    least: Scalar = 1e-30,
    most: Scalar = 1e12,
    forcing: Any = None,
    **parts: Any,
) -> SecondOrder:
    """Levenberg-Marquardt with any curvature and any solver: (G + lambda I) s = -g, taken if its gain ratio is enough.

    Levenberg (1944), Marquardt (1963); as a truncated Gauss-Newton method for networks, Martens (2010).
    ``scipy.optimize.least_squares(method="lm")`` forms and factors the Jacobian; this one needs products only, and
    takes losses other than squares.

    Parameters
    ----------
    curvature
        ``lg.GGN``, ``lg.Hessian``, ``lg.BlockGGN``, or any function from a point to an operator: data, whose own
        functions, if it holds any, are the same objects at each call.
    solver
        Inner solver; what it returns when it stops early (negative curvature, limit) is used. For a curvature
        with blocks ``lg.Blockwise(lg.CG(...))`` solves with each by itself.
    damping
        Initial lambda. Data: a new value is the same compiled program. None: relative to the curvature at the start,
        0.01 g.G g / g.g, by one product.
    rule
        How lambda follows the gain ratio: ``Nielsen()`` (default), ``Marquardt()``, ``ConstantDamping()``.
    model
        ``"undamped"`` or ``"damped"``: which predicted decrease the gain ratio divides by.
    accept
        A step is taken when its gain ratio is above this.
    rtol, atol, ftol, xtol
        When a run ends: see :class:`~linop_gn.methods.Facts`.
    least, most
        Bounds on lambda, in units of the largest s.G s / s.s that there was (at first: of the initial lambda).
    forcing
        ``lg.EisenstatWalker()`` to choose the solver's ``rtol`` at each point; None keeps it.

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> fit = lg.minimize(bowl, np.zeros(2), lg.LevenbergMarquardt(damping=1e-3))
    >>> fit.succeeded, fit.params.round(6)
    (True, array([3., 3.]))
    """
    recipe = {
        "curvature": curvature,
        "descent": descents.Solve(solver, forcing=forcing),
        "control": rule,
        "search": searches.Accept(accept),
        "stopping": Facts(rtol, atol, ftol, xtol),
        "level": damping,
        "least": least,
        "most": most,
        "model": model,
    }
    return _composed("LevenbergMarquardt", recipe, parts)


def Newton(damping: Scalar = 0.0, length: Scalar = 1.0, every: int = 1, **parts: Any) -> SecondOrder:
    """Newton's method, dense: x <- x - length (H + damping I)^+ g.

    H takes n products and an eigendecomposition at each step. At damping 0 the pseudo-inverse leaves out eigenvalues
    of at most n round-offs of the largest; ``SINGULAR`` where these hold all of the gradient. It goes to
    stationary points of any kind; ``lg.TrustRegion`` to minima.
    ``every``: one eigendecomposition may serve so many points (Shamanskii, 1967); see ``lg.descents.Eigen``.

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> fit = lg.minimize(bowl, np.zeros(2), lg.Newton(curvature=lg.GGN))
    >>> fit.params, int(fit.steps) <= 2
    (array([3., 3.]), True)
    """
    recipe = {
        "curvature": Hessian,
        "descent": descents.Eigen(every=every),
        "control": ConstantDamping(),
        "level": damping,
        "search": searches.FixedLength(length),
    }
    return _composed("Newton", recipe, parts)


def NewtonCG(damping: Scalar = 0.0, max_steps: int = 200, **parts: Any) -> SecondOrder:
    """Line search Newton-CG: (H + damping I) d = -g solved as accurately as g has fallen, then Armijo's rule.

    CG ends where it meets negative curvature, with what it has by then; with nothing, d is -g. Where the run ends at a
    saddle, ``NEGATIVE_CURVATURE`` tells so: of more than 32 parameters where 40 products along a random direction's
    Krylov space show it; ``lg.TrustRegion`` leaves it. Nocedal and Wright,
    *Numerical Optimization* (2006), algorithm 7.1; forcing terms of Eisenstat and Walker (1996).

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> lg.minimize(bowl, np.zeros(2), lg.NewtonCG(curvature=lg.GGN)).params.round(6)
    array([3., 3.])
    """
    recipe = {
        "curvature": Hessian,
        "descent": descents.Solve(CG(max_steps=max_steps), forcing=EisenstatWalker(), fallback=True),
        "control": ConstantDamping(),
        "level": damping,
        "search": searches.Armijo(),
    }
    return _composed("NewtonCG", recipe, parts)


def GaussNewton(damping: Scalar = 0.0, solver: Any = None, **parts: Any) -> SecondOrder:
    """Gauss-Newton with Armijo's rule: (G + damping I) d = -g, G = J^T H_L J, by CG or another solver.

    CG ends where its residual is the gradient's rounding, so that a singular G (a softmax of linear outputs) does no
    harm. For few parameters ``solver=lg.Cholesky()`` (``lg.Eigh()`` where G is singular). Björck, *Numerical Methods
    for Least Squares Problems* (1996), chapter 9.

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> lg.minimize(bowl, np.zeros(2), lg.GaussNewton(solver=lg.Cholesky())).params.round(6)
    array([3., 3.])
    """
    recipe = {
        "curvature": GGN,
        "descent": descents.Solve(CG(rtol=1e-5, max_steps=200) if solver is None else solver, fallback=True),
        "control": ConstantDamping(),
        "level": damping,
        "search": searches.Armijo(),
    }
    return _composed("GaussNewton", recipe, parts)


def TrustRegion(radius: Scalar = 1.0, **parts: Any) -> SecondOrder:
    """Newton's method in a trust region: the minimum of g.d + 1/2 d.H d over ||d|| <= radius, H of any sign.

    By default by GLTR, which keeps its Lanczos basis while steps are refused (Gould, Lucidi, Roberts and Toint, 1999),
    to a residual of at most a tenth of the gradient, and less where the last step made it fall by more;
    ``descent=lg.descents.Steihaug()``, ``Krylov()`` or ``Dogleg()`` are others. Where the model promises nothing, GLTR
    looks for curvature below zero that the gradient does not show, so that the run ends in a minimum.

    ``radius`` is in the units of the parameters, or with ``x_scale="start"`` in multiples of the start's magnitudes:
    then no choice of units changes anything but rounding. The radius is never below 1e-30 of the first one.

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> fit = lg.minimize(bowl, np.zeros(2), lg.TrustRegion(curvature=lg.GGN))
    >>> fit.params.round(6), fit.history["radius"][:4]
    (array([3., 3.]), array([1., 2., 4., 4.]))
    """
    recipe = {
        "curvature": Hessian,
        "descent": descents.TrustRegion(forcing=EisenstatWalker(first=0.1, most=0.1, alpha=1.5)),
        "control": Radius(),
        "level": radius,
        "least": 1e-30,
        "search": searches.Accept(),
    }
    return _composed("TrustRegion", recipe, parts)


def SGN(
    steps: int = 10,
    damping: Scalar = 1e-4,
    preconditioner: Any = None,
    momentum: Scalar | None = None,
    early: int | None = None,
    **parts: Any,
) -> SecondOrder:
    """Stochastic generalised Gauss-Newton (Gargiani, Zanelli, Diehl and Hutter, 2020, arXiv 2006.02409).

    (G + rho I) d = -g by at most ``steps`` steps of CG from zero, ended at max |r| <= 1e-6. The gain ratio of the whole
    step, damping included, moves rho by 3/2 below 1/4 and by 2/3 above 3/4, down to 1e-6. Then Armijo's rule from 1,
    halving at most 10 times against a bound that stays that of the whole step; the last length is taken if none does.
    The tolerance is absolute: a gradient below it is not stepped from, and ends a run as ``INNER_TOLERANCE``.

    Parameters
    ----------
    steps, damping
        As above. ``control=`` takes the schedules ``lg.controls.Linear``, ``Cosine`` and ``lg.ConstantDamping()``.
    preconditioner
        ``lg.preconditioners.SquaredGradient(a)`` for the diagonal 1 / (m^2 + rho)^a.
    momentum
        beta of m <- beta m + (1 - beta) g, divided by 1 - beta^t, which takes the place of g in the system and in the
        diagonal; None: m = g. The gain ratio and Armijo's rule stay those of g.
    early
        Steps of CG in the first 9 updates (10 in the published code); None: ``steps``.

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> lg.minimize(bowl, np.zeros(2), lg.SGN(), max_steps=10).params.round(6)
    array([3., 3.])
    """
    steps = whole("SGN", "steps", steps)
    solver = CG(stop=MaxResidual(1e-6), max_steps=max(steps, early or 0), preconditioner=preconditioner)
    direction: descents.Descent = descents.Solve(solver, most=None if early is None else Stages(early, 9, steps))
    recipe = {
        "curvature": GGN,
        "descent": direction if momentum is None else descents.Momentum(direction, momentum, of="gradient"),
        "control": Marquardt(floor=1e-6),
        "level": damping,
        "model": "damped",
        "search": searches.Armijo(c=1e-4, shrink=0.5, most=11, fixed=True, last=True),
    }
    return _composed("SGN", recipe, parts)


def HessianFree(damping: Scalar = 1.0, max_steps: int = 250, preconditioner: Any = None, **parts: Any) -> SecondOrder:
    """Hessian-free optimisation (Martens, 2010; Martens and Sutskever, 2012).

    (G + lambda I) d = -g by CG, preconditioned with (sum_i g_i^2 / N + lambda)^(3/4), from .95 times its last solution,
    until the model has levelled off. lambda moves by 3/2 and 2/3 on the gain ratio of the whole solution, without the
    damping. Then back through the iterates ceil(1.3^j) while the value falls, and Armijo's rule along the best of them,
    c = .01, times .8. Warm start and lambda move also where the step is refused.

    Where the curvature has data of its own, usually fewer, the gain ratio is on these, with the gradient's linear term.

    ``preconditioner`` is another recipe than ``lg.preconditioners.EmpiricalFisher()``.

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> lg.minimize(bowl, np.zeros(2), lg.HessianFree()).params.round(6)
    array([3., 3.])
    """
    recipe_of = EmpiricalFisher() if preconditioner is None else preconditioner
    solver = CG(stop=RelativeProgress(), max_steps=max_steps, keep=1.3, preconditioner=recipe_of)
    recipe = {
        "curvature": GGN,
        "descent": descents.Solve(solver, warm=0.95),
        "control": Marquardt(),
        "level": damping,
        "search": searches.Iterates(searches.Armijo(c=1e-2, shrink=0.8, most=60)),
        "judged_on": "curvature",
    }
    return _composed("HessianFree", recipe, parts)


def EGN(damping: Scalar = 1.0, length: Scalar = 1.0, momentum: Scalar | None = None, **parts: Any) -> SecondOrder:
    """Exact Gauss-Newton in the space of the outputs (Korbit et al., 2024, arXiv 2405.14402).

    d = -(G + damping I)^-1 g = -J^T S (S^T J J^T S + damping I)^-1 q, S S^T = H_L, by Cholesky: for batches with fewer
    outputs than CG would take steps. ``momentum`` averages the directions, divided by what the weights sum to.
    ``search=lg.searches.Armijo(c=0.1, shrink=0.8, first=lr, most=15, grow=1.5)`` is the published search, from at most
    1.5 times the last length; ``control=lg.Marquardt(increase=1.01, decrease=0.99)`` the adaptive damping.

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> lg.minimize(bowl, np.zeros(2), lg.EGN(damping=1.0), max_steps=1).params
    array([1.5, 1.5])
    """
    direction: descents.Descent = descents.Solve(GramSolve())
    recipe = {
        "curvature": GGN,
        "descent": direction if momentum is None else descents.Momentum(direction, momentum),
        "control": ConstantDamping(),
        "level": damping,
        "search": searches.FixedLength(length),
    }
    return _composed("EGN", recipe, parts)


def LayerwiseGaussNewton(damping: Scalar = 0.0, solver: Any = None, **parts: Any) -> SecondOrder:
    """Gauss-Newton for each layer with the others held fixed, then one line search along all of them.

    (G_l + damping I) d_l = -g_l, G_l the block of layer l, all solved side by side by CG or another solver; the best of
    five lengths 2^(-i/2) is taken, even where the value rises: on small batches give a damping. Layerwise Gauss-Newton
    of Abreu et al. (2025, arXiv 2510.09378) solves these systems by an inner optimiser on a stream of minibatches,
    which is ``lg.InnerGaussNewton``.

    Other blocks: ``curvature=functools.partial(lg.BlockGGN, blocks="leaf")``.

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> lg.minimize(bowl, np.zeros(2), lg.LayerwiseGaussNewton()).params.round(6)
    array([3., 3.])
    """
    recipe = {
        "curvature": BlockGGN,
        "descent": descents.Solve(Blockwise(_CG) if solver is None else solver),
        "control": ConstantDamping(),
        "level": damping,
        "search": searches.Grid(),
    }
    return _composed("LayerwiseGaussNewton", recipe, parts)
