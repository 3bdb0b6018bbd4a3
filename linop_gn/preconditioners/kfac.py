"""K-FAC as a preconditioner: the inverse of a curvature's Kronecker-factored approximation at the live damping.

What the factors cost is paid once for each point, their eigenvectors too; another damping is then a pass over the
eigenvalues. As the preconditioner of CG the approximation costs nothing in the answer, and one that is used for the
curvature itself, ``curvature=lg.KFAC``, is solved with in one step: K-FAC as it was published.
"""

from __future__ import annotations

from typing import Any

from ..arguments import require_number
from ..curvature import kfac
from ..curvature.kfac.operators import check_options
from ..curvature.point import Point
from ..operators.base import LinearOperator
from ..operators.congruence import Congruence
from ..operators.damped import undamped
from ..operators.kronecker import Factored, KroneckerBlocks
from ..protocols import Scalar
from ..records import record, static
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
        Of the approximation; see :class:`~linop_gn.KFAC`.
    corrected
        EKFAC, at a second pass over the data.
    rule
        ``"exact"``, or ``"heuristic"``, which damps the factors apart; see :meth:`linop_gn.KroneckerBlocks.inverse`.
    decay
        In a method, the factors are ``decay`` times the former ones and 1 - decay times those of the new point (with
        ``lg.descents.Solve(every=)``: where they are renewed). Zero: only the latest.

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
    decay: Scalar = 0.0

    def __post_init__(self) -> None:
        samples, dense = check_options("KFAC", self.fisher, self.samples, self.seed, self.sharing, self.dense)
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "dense", dense)
        require_number("KFAC", "decay", self.decay)
        if self.rule not in ("exact", "heuristic"):
            raise ValueError(f"KFAC: rule must be 'exact' or 'heuristic', got {self.rule!r}.")
        if self.corrected and (self.rule == "heuristic" or self._averages):
            raise ValueError(
                "KFAC: corrected=True has one eigenvalue for each entry in the latest eigenvectors, which are neither "
                "damped by factors (rule='heuristic') nor averaged (decay=)."
            )

    @property
    def _averages(self) -> bool:
        return not (isinstance(self.decay, (int, float)) and self.decay == 0)

    def prepare(self, operator: LinearOperator) -> Prepared:
        factors, l2 = self._factors(operator)
        return Prepared(factors if self._averages else None, factors.spectral(), l2)

    def renew(self, before: Prepared, operator: LinearOperator) -> Prepared:
        """The factors at another point, averaged with those before."""
        if not self._averages:
            return self.prepare(operator)
        factors, l2 = self._factors(operator)
        assert before.factors is not None
        blocks = tuple(
            Factored(*(self.decay * a + (1.0 - self.decay) * b for a, b in zip(_sides(old), _sides(new), strict=True)))
            for old, new in zip(before.factors.blocks, factors.blocks, strict=True)
        )
        mean = KroneckerBlocks(blocks, factors.places, factors.domain, factors.notes)
        return Prepared(mean, mean.spectral(), l2)

    def finish(self, prepared: Prepared, operator: LinearOperator) -> LinearOperator:
        inner, damping = undamped(operator)
        xp = operator.backend.namespace()
        level: Any = damping if prepared.l2 is None else damping + xp.mean(xp.asarray(prepared.l2))
        if not isinstance(inner, Congruence):
            return prepared.spectral.inverse(level, self.rule)
        units = xp.where(inner.units > 0, inner.units, xp.ones_like(inner.units))
        level = level / xp.mean(units * units)  # S K S + d I is about S (K + d / mean(s^2) I) S
        return Congruence(prepared.spectral.inverse(level, self.rule), 1.0 / units)

    def cost(self, operator: LinearOperator) -> tuple[int, int]:
        """Products (passes backward), and numbers held at a time, that :meth:`prepare` takes."""
        point = _point_or_blocks(operator)
        if not isinstance(point, Point) or point.host:
            return 0, 4 * operator.domain.size
        shape = point.linearized().pieces[0].outputs.shape
        columns = 1
        for n in shape[1:] if len(shape) <= 2 else shape[-1:]:
            columns *= n
        number = {"type-2": columns, "mc": self.samples}.get(self.fisher, 1)
        return number * (2 if self.corrected else 1), 4 * operator.domain.size

    def _factors(self, operator: LinearOperator) -> tuple[KroneckerBlocks, Any]:
        known = _point_or_blocks(operator)
        if isinstance(known, KroneckerBlocks):
            return known, None
        if isinstance(known, kfac.KFAC):
            return known.factors, known.point.objective.l2_in(known.domain)
        made = (kfac.EKFAC if self.corrected else kfac.KFAC)(
            known, fisher=self.fisher, samples=self.samples, seed=self.seed, sharing=self.sharing, dense=self.dense
        )
        return made.factors, known.objective.l2_in(known.space)


def _point_or_blocks(operator: LinearOperator) -> Any:
    """The Kronecker factors that the operator consists of, or the point that it was made at."""
    inner, _ = undamped(operator)
    if isinstance(inner, Congruence):
        inner = inner.operator
    return inner if isinstance(inner, (kfac.KFAC, KroneckerBlocks)) else point_of(inner, "KFAC")


def _sides(block: Factored) -> tuple[Any, Any]:
    return block.left, block.right
