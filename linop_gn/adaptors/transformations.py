"""Methods and solvers as gradient transformations of optax."""

from __future__ import annotations

from typing import Any

from ..arguments import require_instance, require_number
from ..curvature.objective import Objective
from ..foreign import advised
from ..methods.base import Method
from ..operators.base import LinearOperator
from ..protocols import Scalar
from ..solvers.base import require_solver
from .found import serving

__all__ = ["to_optax"]


@advised
def to_optax(
    objective: Objective,
    method: Method | None = None,
    *,
    curvature: Any = None,
    solver: Any = None,
    damping: Scalar | None = None,
) -> Any:
    """A method, or a curvature with a solver and a damping, as an ``optax.GradientTransformationExtraArgs``.

    ``update(updates, state, params, *, data=None, objective=None, **others)`` returns what to *add* to ``params``.
    Other keywords (``value=``, ``grad=``, ``value_fn=``) are for the neighbours in a chain. One that no transformation
    of optax's has is refused where neither ``data`` nor ``objective`` is given: it may be a mistyped ``data``.

    Parameters
    ----------
    objective
        Model, loss and data as functions of the parameters. ``data=`` gives a step another batch, as
        ``objective.with_data`` takes it, ``objective=`` another objective; batches of one shape are one program.
    method
        An :class:`~linop_gn.Method`: each update is a step of it at ``params``, on the data of the step. It takes the
        gradient from the objective: what comes in as ``updates`` is not looked at, and transformations belong behind.
    curvature, solver, damping
        Without a method: -(C + damping I)^-1 times what comes in, for C = ``curvature(point)`` (``lg.GGN``) by
        ``solver`` (``lg.CG()``). It is linear in the updates, so that transformations stand on both sides. ``damping``
        (0) is a number or a schedule of optax, a function of the count of steps.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its state is a NamedTuple of arrays with ``status``, ``steps`` and ``products`` of what was done last; a
        method's has ``value`` and ``own``, its own state, too. Operators are not kept in it.

    Raises
    ------
    TypeError
        For parts that are none, or a method beside parts.
    ImportError
        Where optax is not installed.
    """
    require_instance("to_optax", objective, Objective, "an lg.Objective", "It knows model, loss and data.")
    if method is not None:
        if not (curvature is None and solver is None and damping is None):
            raise TypeError(
                "to_optax: a method has parts of its own: write lg.LevenbergMarquardt(solver=..., damping=...), or "
                "leave the method out."
            )
        advice = "A solver with a curvature is to_optax(objective, curvature=lg.GGN, solver=lg.CG(), damping=1e-2)."
        require_instance("to_optax", method, Method, "an lg.Method such as lg.SGN()", advice)
        return serving("to_optax").stepping(objective, method)
    if curvature is not None and (not callable(curvature) or isinstance(curvature, LinearOperator)):
        raise TypeError(f"to_optax: curvature= is a function of a point, such as lg.GGN, got {curvature!r:.100}.")
    if solver is not None:
        require_solver("to_optax", solver, "a solver such as lg.CG() as solver=")
    if not callable(damping):
        require_number("to_optax", "damping", damping, optional=True)
    return serving("to_optax").solving(objective, curvature, solver, 0.0 if damping is None else damping)
