"""K-FAC as a preconditioner: the inverse of a curvature's Kronecker-factored approximation at the live damping.

What the factors cost is paid once for each point, their eigenvectors too; another damping is then a pass over the
eigenvalues. As the preconditioner of CG the approximation costs nothing in the answer, and one that is used for the
curvature itself, ``curvature=lg.KFAC``, is solved with in one step: K-FAC as it was published.
"""

from __future__ import annotations

import math
from typing import Any

from ..arguments import require_number
from ..curvature import kfac
from ..curvature.kfac.operators import check_options
from ..curvature.point import Point
from ..operators.base import LinearOperator
from ..operators.congruence import Congruence
from ..operators.damped import undamped
from ..operators.factored import Factored
from ..operators.kronecker import KroneckerBlocks
from ..protocols import Scalar
from ..records import record, replace, static
from .base import Checked, point_of

__all__ = ["KFAC"]


@record
class Prepared:
    """Of a point: the factors where they are averaged, the same by eigenvectors, and the objective's l2."""

    factors: KroneckerBlocks | None
    spectral: KroneckerBlocks
    l2: Any


@record
class KFAC(Checked):
    """(K + damping I)^-1 with K the :class:`~linop_gn.KFAC` of the operator's objective at its point.

    For operators made from an objective (lg.GGN, lg.BlockGGN, lg.Hessian, Fisher operators, lg.KFAC itself), damped or
    not, and for lg.KroneckerBlocks.

    Parameters
    ----------
    fisher, samples, seed, sharing, dense
        Of the approximation; see :class:`~linop_gn.KFAC`. An operator that is one has its own.
    corrected
        EKFAC, at a second pass over the data.
    rule
        ``"exact"``, or ``"heuristic"``, which damps the factors apart; see :meth:`linop_gn.KroneckerBlocks.inverse`.
    decay
        In a method, the factors are ``decay`` times the former ones and 1 - decay times those of the new point (with
        ``lg.descents.Solve(every=)``: where they are renewed). None: only the latest.

    >>> import linop_gn as lg, torch
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(300, 6), torch.randint(4, (300,))
    >>> net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    >>> fit = lg.Objective(net, lg.losses.CrossEntropy(), (x, y))
    >>> A, g = lg.Damped(lg.GGN(fit, net), 1e-5), fit.gradient(net)
    >>> plain, ours = (lg.solve(A, g, lg.CG(rtol=1e-3, preconditioner=M)) for M in (None, lg.preconditioners.KFAC()))
    >>> ours.steps < plain.steps
    True
    """

    fisher: str = static(default="type-2")
    samples: int = static(default=1)
    seed: Scalar = 0
    sharing: str = static(default="expand")
    dense: int = static(default=4096)
    corrected: bool = static(default=False)
    rule: str = static(default="exact")
    decay: Scalar | None = None

    def __post_init__(self) -> None:
        samples, dense = check_options("KFAC", self.fisher, self.samples, self.seed, self.sharing, self.dense)
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "dense", dense)
        require_number("KFAC", "decay", self.decay, below=1.0, optional=True)
        if self.rule not in ("exact", "heuristic"):
            raise ValueError(f"KFAC: rule must be 'exact' or 'heuristic', got {self.rule!r}.")
        if self.corrected and (self.rule == "heuristic" or self.decay is not None):
            raise ValueError(
                "KFAC: corrected=True has one eigenvalue for each entry in the latest eigenvectors, which are neither "
                "damped by factors (rule='heuristic') nor averaged (decay=)."
            )

    def prepare(self, operator: LinearOperator) -> Prepared:
        factors, l2 = self._factors(operator)
        return Prepared(None if self.decay is None else self._to_average(factors), factors.spectral(), l2)

    def renew(self, before: Prepared, operator: LinearOperator) -> Prepared:
        """The factors at another point, averaged with those before."""
        if self.decay is None:
            return self.prepare(operator)
        factors, l2 = self._factors(operator)
        assert before.factors is not None
        old, new = self.decay, 1.0 - self.decay
        blocks = tuple(
            Factored(old * a.left + new * b.left, old * a.right + new * b.right)
            for a, b in zip(before.factors.blocks, self._to_average(factors).blocks, strict=True)
        )
        mean = replace(factors, blocks=blocks)
        return Prepared(mean, mean.spectral(), l2)

    def finish(self, prepared: Prepared, operator: LinearOperator) -> LinearOperator:
        inner, damping = undamped(operator)
        xp = operator.backend.namespace()
        level: Any = damping if prepared.l2 is None else damping + xp.mean(xp.asarray(prepared.l2))
        if not isinstance(inner, Congruence):
            return self._inverse(prepared, level)
        units = xp.where(inner.units > 0, inner.units, xp.ones_like(inner.units))
        level = level / xp.mean(units * units)  # S K S + d I is about S (K + d / mean(s^2) I) S
        return Congruence(self._inverse(prepared, level), 1.0 / units)

    def _inverse(self, prepared: Prepared, level: Scalar) -> KroneckerBlocks:
        """Where it is singular the solver has zeros, of which the residual tells: no warning."""
        return prepared.spectral.inverse_at(prepared.spectral.levels(level), self.rule)

    def cost(self, operator: LinearOperator) -> tuple[int, int]:
        """Products (passes backward), and numbers held at a time, that :meth:`prepare` takes."""
        point = _point_or_blocks(operator)
        if not isinstance(point, Point) or point.host:
            return 0, 4 * operator.domain.size
        piece, xp = self._made(point).point.linearized().pieces[0], operator.backend.namespace()
        passes = 1 if piece.stacked else piece.hessian.columns(xp, piece.outputs).number
        sides = [(shape[0], math.prod(shape[1:])) for shape in operator.domain.shapes if len(shape) > 1]
        held = sum(n * n for both in sides for n in both if n <= self.dense)
        return passes * (2 if self.corrected else 1), 2 * held + 2 * operator.domain.size

    def _to_average(self, factors: KroneckerBlocks) -> KroneckerBlocks:
        if not all(isinstance(block, Factored) for block in factors.blocks):
            raise ValueError(
                "KFAC: decay averages factors, and the operator is known by eigenvectors (lg.EKFAC, or "
                ".spectral()): leave decay out, or take lg.KFAC."
            )
        return factors

    def _factors(self, operator: LinearOperator) -> tuple[KroneckerBlocks, Any]:
        known = _point_or_blocks(operator)
        if isinstance(known, KroneckerBlocks):
            return known, None
        if isinstance(known, kfac.KFAC):
            return known.factors, known.point.objective.l2_in(known.domain)
        return self._made(known).factors, known.objective.l2_in(known.space)

    def _made(self, point: Point) -> kfac.KFAC:
        kind = kfac.EKFAC if self.corrected else kfac.KFAC
        fisher = {"fisher": self.fisher, "samples": self.samples, "seed": self.seed}
        return kind(point, **fisher, sharing=self.sharing, dense=self.dense)


def _point_or_blocks(operator: LinearOperator) -> Any:
    """The Kronecker factors that the operator consists of, or the point that it was made at."""
    inner, _ = undamped(operator)
    if isinstance(inner, Congruence):
        inner = inner.operator
    return inner if isinstance(inner, (kfac.KFAC, KroneckerBlocks)) else point_of(inner, "KFAC")
