"""One Krylov basis, every damping, every radius.

:func:`krylov` runs the Lanczos process once (:mod:`linop_gn.lanczos.process`).
What the resulting :class:`Krylov` answers afterwards takes no product: it solves
a small tridiagonal problem (:mod:`linop_gn.lanczos.tridiagonal`) and combines
basis vectors, in one matrix product for any number of dampings::

    (A + sigma I) x = b             x = Q (T + sigma I)^-1 ||b|| e_1
    min 1/2 x.A x - b.x, ||x|| <= r  x = Q h, h the same problem with T
    b.f(A) b                        ||b||^2 e_1.f(T) e_1, Gauss quadrature

The space does not change with the damping, because that of A + sigma I is that
of A; this is why x starts at zero and there is no preconditioner here. After a
rejected step of a trust-region or Levenberg-Marquardt method only the small
problem is solved again. References: Gould, Lucidi, Roberts and Toint (1999);
Golub and Meurant, *Matrices, Moments and Quadrature* (2010). SciPy has nothing
of the kind: ``trust-krylov`` builds its basis anew at each point and radius is
one number, ``cg`` solves one system.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ref

import numpy as np

from ..arguments import require_number, whole
from ..distributed.agreed import require_alike
from ..distributed.watching import told_to_all
from ..foreign import advised
from ..operators.base import LinearOperator, require_operator
from ..protocols import Array, Backend, Carry, Scalar, Vector
from ..records import bare, memo, record, replace, static
from ..run.loop import Reached
from ..run.status import Status
from ..spaces import Space
from . import answers
from .answers import KrylovSteps, QuadraticForm, Ritz
from .process import BasisProblem, Lanczos
from .quadrature import check_interval
from .state import LanczosState

__all__ = ["Krylov", "krylov"]

_GO_ON = "error.result has the space so far; go on with its extend()."


@record
class Krylov:
    """A basis of the Krylov space of A and b, and what it answers; made by :func:`krylov`.

    A record of data: it goes into compiled programs and comes out of them, into copies and pickles. Unless the basis
    was not kept (``keep=False``), only :meth:`extend` takes products. It holds A as it was given, and no
    linearisation: :meth:`extend` linearises anew where nobody holds the one that there was.
    """

    operator: LinearOperator
    """A; prepared, where the basis is not kept."""
    state: LanczosState
    start: Vector | None
    """q_0, where the basis is not kept."""
    method: Lanczos
    space: Space = static()
    as_tree: bool = static()

    # what was done

    @property
    def status(self) -> Status:
        """Why the run stopped."""
        return Status(int(self.state.status))

    @property
    def steps(self) -> Any:
        """Vectors in the basis."""
        return self.state.steps

    @property
    def products(self) -> Any:
        """Products with A that made the basis."""
        return self.state.products

    @property
    def host(self) -> bool:
        """Whether a product draws data from the host."""
        return self.operator.host

    @property
    def _ops(self) -> Backend:
        return self.space.backend

    @property
    def _like(self) -> Vector:
        return self._ops.row(self.state.basis, 0)

    def _call(self, function: Any, *arguments: Any) -> Any:
        with np.errstate(all="ignore"):  # the status tells
            return self._ops.call(function, self, *arguments)

    def _numbers(self, values: Any, name: str, positive: bool) -> tuple[Array, bool]:
        """A small array (m,) from a number or a sequence of them, and whether it was one number."""
        ops = self._ops
        single = not isinstance(values, Sequence) and np.ndim(values) == 0
        small = ops.small([values] if single else values, self._like)
        if ops.is_concrete(small):
            host = np.asarray(small)
            fits = (host > 0).all() if positive else np.isfinite(host).all()
            if host.ndim != 1 or host.size == 0 or not fits:
                kind = "positive numbers (infinity is one)" if positive else "finite numbers"
                raise ValueError(f"{name} must be one or several {kind}, got {values!r}.")
        return small, single

    # solutions

    def solve(self, damping: Any = 0.0, *, rtol: Scalar = 1e-5, atol: Scalar = 0.0) -> KrylovSteps:
        """x of (A + damping I) x = b in the space, for one damping or a sequence of them.

        These are the iterates of conjugate gradients for each damping. ``CONVERGED`` where the residual is at most
        max(rtol ||b||, atol), ``COMPLETED`` where it is not yet. Where A + damping I is indefinite in the space the
        solution is the last one before that showed (``NEGATIVE_CURVATURE``).

        >>> import numpy as np, linop_gn as lg
        >>> K = lg.krylov(lg.Diagonal(np.array([1.0, 2.0, 4.0])), np.ones(3), k=3)
        >>> K.solve(damping=[0.0, 1.0]).x.round(6)
        array([[1.        , 0.5       ],
               [0.5       , 0.333333],
               [0.25      , 0.2       ]])
        """
        dampings, single = self._numbers(damping, "damping", positive=False)
        return self._leave(self._call(answers.solve_shifted, dampings, *self._tolerances(rtol, atol)), single)

    def trust_region(self, radius: Any, *, rtol: Scalar = 1e-5, atol: Scalar = 0.0) -> KrylovSteps:
        """The minimiser of 1/2 x.A x - b.x over ||x|| <= radius in the space, for one radius or a sequence of them.

        A may be indefinite. ``BOUNDARY`` where ||x|| = radius; inside, ``CONVERGED`` or ``COMPLETED`` as in
        :meth:`solve`, but ``UNEXPLORED`` for ``CONVERGED`` where there may be negative curvature outside of the space
        (A is not known to be positive semi-definite, and :meth:`extend` did not look far enough). The residual
        is that of (A + lambda I) x = b with the multiplier lambda, ``damping``.

        >>> import numpy as np, linop_gn as lg
        >>> K = lg.krylov(lg.Diagonal(np.array([-1.0, 2.0]), psd=False), np.ones(2), k=2)
        >>> step = K.trust_region(radius=0.5)
        >>> step.status.name, round(float(step.norm), 12)
        ('BOUNDARY', 0.5)
        """
        radii, single = self._numbers(radius, "radius", positive=True)
        return self._leave(self._call(answers.minimise, radii, *self._tolerances(rtol, atol)), single)

    def residual(self, damping: Any = 0.0) -> Any:
        """||b - (A + damping I) x|| of what :meth:`solve` would answer, without making x."""
        return self._told(damping)[0]

    def model(self, damping: Any = 0.0) -> Any:
        """1/2 x.(A + damping I) x - b.x of what :meth:`solve` would answer, without making x."""
        return self._told(damping)[1]

    def _told(self, damping: Any) -> Any:
        dampings, single = self._numbers(damping, "damping", positive=False)
        found = self._call(answers.residuals_and_models, dampings)
        return tuple(map(self._one, found)) if single else found

    def _one(self, values: Array) -> Scalar:
        return self._ops.item(values[0])

    def _tolerances(self, rtol: Scalar, atol: Scalar) -> tuple[Array, Array]:
        for name, value in (("rtol", rtol), ("atol", atol)):
            require_number("Krylov", name, value)
        return self._ops.small(rtol, self._like), self._ops.small(atol, self._like)

    def _vectors(self, X: Vector, single: bool) -> Any:
        made = X[:, 0] if single else X
        return self.space.unpack(made) if self.as_tree else made

    def _leave(self, answer: KrylovSteps, single: bool) -> KrylovSteps:
        scalars = {name: getattr(answer, name) for name in ("code", "damping", "residual", "model", "norm", "used")}
        if single:
            scalars = {name: self._one(value) for name, value in scalars.items()}
        return replace(answer, x=self._vectors(answer.x, single), **scalars)

    # spectrum

    def eigenvalues(self) -> Ritz:
        """Ritz values with error bounds: extreme eigenvalues of A are found first.

        >>> import numpy as np, linop_gn as lg
        >>> lg.krylov(lg.Diagonal(np.array([1.0, 2.0, 4.0])), np.ones(3), k=3).eigenvalues().values.round(12)
        array([1., 2., 4.])
        """
        return Ritz(*(part[: self._made] for part in self._call(answers.ritz)))

    def eigenvectors(self, indices: Any) -> Any:
        """Ritz vectors of the eigenvalues with these indices (an int, or several), in the format of b."""
        single = np.ndim(indices) == 0
        wanted = np.atleast_1d(np.asarray(indices))
        count = self._made
        if wanted.dtype.kind not in "iu" or (wanted >= count).any() or (wanted < -count).any():
            raise IndexError(f"there are {count} Ritz vectors; got indices {indices!r}.")
        vectors = self._call(answers.ritz_vectors)[:, np.where(wanted < 0, wanted + count, wanted)]
        X, _ = self._call(answers.combined, vectors)
        return self._vectors(X, single)

    @property
    def _made(self) -> int:
        """How many vectors there are; in a compiled program, for how many there is room."""
        return int(self.steps) if self._ops.is_concrete(self.steps) else self.state.alphas.shape[0]

    def quadratic_form(self, function: Any, interval: tuple[Scalar, Scalar] | None = None) -> QuadraticForm:
        """b.f(A) b for a function f of arrays of eigenvalues, by Gauss quadrature.

        With an ``interval`` (low, high) that holds A's spectrum, Gauss-Radau rules with nodes at its ends give a
        lower and an upper bound, for f whose derivatives alternate in sign there: 1/x, log x, exp(-x), x^(-p).

        >>> import numpy as np, linop_gn as lg
        >>> A, b = lg.Diagonal(np.linspace(1.0, 9.0, 50)), np.ones(50)
        >>> form = lg.krylov(A, b, k=6).quadratic_form(lambda x: 1 / x, interval=(1.0, 9.0))
        >>> bool(form.lower < b @ (b / A.values) < form.upper)
        True
        """

        def integral(rule: tuple[Array, Array]) -> Scalar:
            nodes, weights = rule
            xp = self._ops.small_namespace()
            values = xp.where(weights > 0, function(xp.where(weights > 0, nodes, nodes[0])), 0.0)
            return self._ops.item(xp.sum(weights * values))

        estimate = integral(self._call(answers.rule))
        if interval is None:
            return QuadraticForm(estimate, None, None)
        if self._ops.is_concrete(self.state.alphas):
            check_interval(interval, np.asarray(self.eigenvalues().values, float), self._ops.eps(self._like))
        ends = [self._ops.small(end, self._like) for end in interval]
        low, high = (integral(self._call(answers.rule, end)) for end in ends)
        least, most = self._ops.minimum, self._ops.maximum
        return QuadraticForm(estimate, least(least(estimate, low), high), most(most(estimate, low), high))

    # more steps

    def extend(self, steps: int) -> Krylov:
        """The space with ``steps`` more vectors: so many more products, none anew; this one stays as it is.

        Where the space is invariant (that of a zero b is, with no vector), the basis goes on from a random vector
        orthogonal to it, which finds parts of the spectrum that b has no part in.
        """
        steps = whole("extend", "steps", steps, 1)
        method = replace(self.method, steps=self._made + steps)
        known = memo(self).prepared
        ready = (known and known()) or bare(self.operator).prepare()
        problem = BasisProblem(ready, self._like, begun=self.state)

        def made(carry: Carry) -> Krylov:
            space = replace(self, state=carry.state, method=method)
            memo(space).prepared = known
            return space

        with Reached(made, _GO_ON):
            carry = self._ops.run(method, problem, method.limit(problem))
        return made(carry)

    def __repr__(self) -> str:
        kind = f"{self.method.reorthogonalise} reorthogonalisation"
        if not self._ops.is_concrete(self.steps):
            return f"Krylov(traced, {kind})"
        counts = f"{int(self.steps)} vectors of {self.operator!r}, {int(self.products)} products"
        return f"Krylov: {self.status.name.lower()}; {counts}; {kind}\n{self.status.sentence}"


@told_to_all
@advised
def krylov(
    A: LinearOperator, b: Any, k: int, *, reorthogonalise: str = "selective", keep: bool = True, seed: int = 0
) -> Krylov:
    """The Krylov space of A and b, with at most k vectors: k products.

    Parameters
    ----------
    A
        Symmetric operator, definite or not.
    b
        Right-hand side: a tree or flat (n,).
    k
        Number of vectors; fewer where the space is invariant earlier (status ``INVARIANT``).
    reorthogonalise
        ``"selective"`` (default), ``"full"`` or ``"none"``: see :mod:`linop_gn.lanczos.process`.
    keep
        Whether the basis is kept: k + 1 vectors. If not (``reorthogonalise="none"`` only) each call that returns
        vectors takes a second pass of k - 1 products, for any number of them.
    seed
        Of the random vector that :meth:`Krylov.extend` goes on from where the space is invariant.

    >>> import numpy as np, linop_gn as lg
    >>> K = lg.krylov(lg.Diagonal(np.linspace(1.0, 100.0, 1000)), np.ones(1000), k=30)
    >>> K.solve(damping=[1.0, 10.0, 100.0])
         damping     residual         norm  status
               1   0.00571225      2.25225  completed
              10  1.03047e-07     0.910937  converged
             100  2...e-22     0.222524  converged
    No product was taken.
    The fixed number of steps asked for was done.
    The tolerance was met.

    Raises
    ------
    TypeError, ValueError
        For an operator that is not known to be symmetric, vectors that don't fit it, or columns.
    """
    require_operator("krylov", A)
    method = Lanczos(k, reorthogonalise, keep, False, seed)
    method.check(A)
    rhs, _ = A.domain.enter(b, "right-hand side")
    require_alike(A.reduction, "krylov", A.domain, (A, method), right_hand_side=rhs)
    problem, ops = BasisProblem(A.prepare(), rhs), A.backend
    flat = ops.is_array(b) and tuple(b.shape) == (A.domain.width,)

    def made(carry: Carry) -> Krylov:
        start = None if keep else ops.call(answers.first_vector, problem, carry.state)
        space = Krylov(bare(A) if keep else problem.operator, carry.state, start, method, A.domain, not flat)
        memo(space).prepared = ref(problem.operator)
        return space

    with Reached(made, _GO_ON):
        carry = ops.run(method, problem, method.limit(problem))
    return made(carry)
