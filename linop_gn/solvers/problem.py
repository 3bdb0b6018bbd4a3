"""The linear system that a solver is given."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from ..operators.base import LinearOperator
from ..protocols import Scalar, Vector
from ..records import record, static

__all__ = ["LinearProblem", "MadeFrom", "Recipe", "Row", "as_preconditioner", "require_fit"]


@record
class Recipe:
    """A preconditioner yet to be made, in two parts: one for a point and a batch, one for a damping.

    :meth:`prepare` does the work that needs products with the undamped operator, and
    returns data; :meth:`finish` turns these data and the operator as it is damped now
    into a preconditioner, and takes no product. A method that tries several dampings at
    one point reuses the data; calling the recipe does both at once.
    """

    def prepare(self, operator: LinearOperator) -> Any:
        """What does not depend on the damping: a tree of arrays and records, or None."""
        return None

    def renew(self, before: Any, operator: LinearOperator) -> Any:
        """:meth:`prepare` at another point; ``before`` is what was prepared, or renewed, at the last one."""
        return self.prepare(operator)

    def finish(self, prepared: Any, operator: LinearOperator) -> LinearOperator:
        """The preconditioner for ``operator``, damped as it is now, from what :meth:`prepare` returned."""
        raise NotImplementedError(f"{type(self).__name__} does not define finish")

    def cost(self, operator: LinearOperator) -> tuple[int, int]:
        """Products that it takes, and numbers that it stores."""
        return 0, 0

    @property
    def title(self) -> str:
        """How a cost names it."""
        return type(self).__name__

    def __call__(self, operator: LinearOperator) -> LinearOperator:
        """The preconditioner for ``operator``: an operator that applies an approximation of its inverse."""
        return finished(self, self.prepare(operator), operator)


def finished(recipe: Recipe, prepared: Any, operator: LinearOperator) -> LinearOperator:
    """What the recipe finishes, looked at."""
    made: Any = recipe.finish(prepared, operator)
    if not isinstance(made, LinearOperator):
        raise TypeError(
            f"{type(recipe).__qualname__}.finish must return a linear operator that applies an approximation of the "
            f"inverse, such as lg.Diagonal(1 / diagonal), got a {type(made).__qualname__}."
        )
    return made


@record
class MadeFrom(Recipe):
    """A preconditioner yet to be made by a function of the operator that is being solved with.

    The function is part of the program; what it makes is data. It is called anew for each damping.
    """

    make: Callable[[LinearOperator], Any] = static()

    @property
    def title(self) -> str:
        return self.make.__name__ if inspect.isroutine(self.make) else repr(self.make)

    def finish(self, prepared: Any, operator: LinearOperator) -> LinearOperator:
        """What the function makes of ``operator``.

        Raises
        ------
        TypeError
            If it is no linear operator.
        """
        made: Any = self.make(operator)
        if not isinstance(made, LinearOperator):
            raise TypeError(
                f"the preconditioner's function {self.title} made a {type(made).__qualname__} from {operator!r}; it "
                "must return a linear operator that applies an approximation of the inverse."
            )
        return made


def as_preconditioner(given: Any, method: str) -> LinearOperator | Recipe | None:
    """What users pass as ``preconditioner=``: an operator, a recipe, a function of the operator, or None.

    Raises
    ------
    TypeError
        For anything else.
    """
    if hasattr(given, "point"):
        warnings.warn(
            f"{method}: preconditioner is {type(given).__qualname__}, which is curvature, not near its inverse. Give "
            "the inverse of Kronecker factors, lg.KFAC(objective, params).inverse(damping), or a recipe such as "
            "lg.preconditioners.KFAC() or lg.preconditioners.Jacobi().",
            stacklevel=7,  # where CG is made
        )
    if given is None or isinstance(given, (LinearOperator, Recipe)):
        return given
    if not callable(given) or isinstance(given, type):
        what = f"the class {given.__qualname__}" if isinstance(given, type) else f"a {type(given).__qualname__}"
        raise TypeError(
            f"{method}: preconditioner is {what}; give a linear operator that applies an approximation of A^-1, a "
            "recipe such as lg.preconditioners.Jacobi(), or a function that makes an operator from A."
        )
    return MadeFrom(given)


def require_fit(preconditioner: LinearOperator, operator: LinearOperator) -> None:
    """Raise unless the preconditioner maps the operator's residuals to steps."""
    fits = preconditioner.domain.agrees(operator.codomain) and preconditioner.codomain.agrees(operator.domain)
    if not fits:
        raise ValueError(
            f"the preconditioner {preconditioner!r} does not fit {operator!r}: it must map residuals to steps."
        )


@record
class LinearProblem:
    """Find x with A x = b, starting at ``x0`` (None: zero, which costs no product).

    ``preconditioner`` applies an approximation of A^-1 (None: the identity).
    """

    operator: LinearOperator
    rhs: Vector
    x0: Vector | None = None
    preconditioner: LinearOperator | None = None

    @property
    def like(self) -> Vector:
        """A vector of the problem: its dtype is that of the scalars."""
        return self.rhs

    @property
    def host(self) -> bool:
        """Whether a product draws data from the host."""
        inner = self.preconditioner
        return self.operator.host or (inner is not None and inner.host)

    def prepare(self) -> LinearProblem:
        """The problem with its operators' per-point work done."""
        operator, inner = self.operator.prepare(), self.preconditioner
        ready = inner.prepare() if isinstance(inner, LinearOperator) else inner
        if operator is self.operator and ready is inner:
            return self
        return LinearProblem(operator, self.rhs, self.x0, ready)

    def precondition(self, r: Vector) -> Any:
        """M r, or r itself without a preconditioner (then not to be consumed)."""
        return r if self.preconditioner is None else self.preconditioner.apply(r)


class Row(NamedTuple):
    """2-norm of the residual, and the quadratic model, at each step."""

    residual: Scalar
    model: Scalar
