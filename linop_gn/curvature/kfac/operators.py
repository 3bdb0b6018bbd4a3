r"""KFAC and EKFAC: curvature operators whose blocks are Kronecker products of two small matrices.

A layer's block of the Gauss-Newton operator is approximated by L (x) R, with L of the derivatives in the layer's
results and R of its inputs (:mod:`linop_gn.curvature.kfac.sums` has the sums). Both take one pass forward and one
backward for each column of the root of the loss's Hessian; an inverse, a determinant, a product are then exact and
cheap. EKFAC keeps the eigenvectors of L (x) R and replaces its eigenvalues by the best ones: no operator with these
eigenvectors is nearer to the block of the same columns in the Frobenius norm.

Martens and Grosse, *Optimizing neural networks with Kronecker-factored approximate curvature* (2015); George et al.,
*Fast approximate natural gradient descent in a Kronecker-factored eigenbasis* (2018); Eschenhagen et al.,
*Kronecker-factored approximate curvature for modern neural network architectures* (2023).

Layers are found by what the model calls: any operation that is linear in a parameter, however the model is written.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from ...arguments import whole
from ...draws import check_seed
from ...operators.base import LinearOperator
from ...operators.factored import Factored, Spectral, positive, traces, widened
from ...operators.kronecker import KroneckerBlocks
from ...operators.norms import norm_with_diagonal
from ...operators.partition import Partition
from ...protocols import Array, Backend, Scalar, Tree
from ...records import Partial, fill, memo, record, replace, static
from ..at_point import AtPoint, as_point, with_l2
from ..fisher import EmpiricalFisher, Fisher
from ..gram import require_root
from ..layers.layout import Plan, Settings
from ..losses.scores import Scores
from ..objective import Objective
from ..point import Point
from .corrections import corrections
from .sums import factor_sums, plus

__all__ = ["EKFAC", "KFAC", "check_options"]


def check_options(owner: str, fisher: str, samples: int, seed: Scalar, sharing: str, dense: int) -> tuple[int, int]:
    """``samples`` and ``dense`` as whole numbers; raises for options that there are not."""
    if fisher not in ("type-2", "mc", "empirical"):
        raise ValueError(f"{owner}: fisher must be 'type-2', 'mc' or 'empirical', got {fisher!r}.")
    if sharing not in ("expand", "reduce"):
        raise ValueError(f"{owner}: sharing must be 'expand' or 'reduce', got {sharing!r}.")
    check_seed(owner, seed)
    samples = whole(owner, "samples", samples, 1)
    if samples > 1 and fisher != "mc":
        raise ValueError(f"{owner}: samples={samples} are targets drawn for fisher='mc', and fisher is {fisher!r}.")
    return samples, whole(owner, "dense", dense, 1)


@record
class KFAC(AtPoint):
    """The Kronecker-factored approximation of the Gauss-Newton operator of ``objective`` at ``params``; PSD.

    Parameters
    ----------
    fisher
        What L is made of: ``"type-2"``, the columns of the root of the loss's Hessian, as many passes backward as a
        prediction has numbers; ``"mc"``, gradients at ``samples`` targets drawn from the model, whose mean that is;
        ``"empirical"``, gradients at the data's own targets.
    samples, seed
        Of ``"mc"``.
    sharing
        What is done with the positions that share a weight (of a convolution, a sequence): ``"expand"`` takes each for
        an example, ``"reduce"`` adds up those of an example first.
    dense
        A side of a layer that is larger is held as a diagonal.

    Shape (n, n) for n parameters. Linear layers, convolutions and embeddings have Kronecker blocks, a weight and its
    bias one together; scales and shifts have exact dense ones; a leaf that enters anything else has the diagonal of the
    operator, estimated. :meth:`report` says which. The factors are computed at the first use.

    >>> import linop_gn as lg, torch
    >>> x, y = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    >>> net = torch.nn.Linear(2, 3).double()
    >>> fit = lg.Objective(net, lg.losses.SquaredError(), (x, y))
    >>> K, G = lg.KFAC(fit, net), lg.GGN(fit, net)
    >>> torch.allclose(K.to_dense(), G.to_dense())  # one example: exact
    True
    >>> K.inverse(damping=0.1) @ net  # doctest: +ELLIPSIS
    {...}

    Raises
    ------
    ValueError, TypeError
        For a loss without what ``fisher`` needs of it, as :class:`GGN` and the Fisher operators say.
    """

    settings: Settings = static()
    regularised = True
    psd = True
    corrected: ClassVar[bool] = False

    def __init__(
        self,
        objective: Objective | Point,
        params: Tree = None,
        *,
        fisher: str = "type-2",
        samples: int = 1,
        seed: Scalar = 0,
        sharing: str = "expand",
        dense: int = 4096,
    ) -> None:
        name = f"lg.{type(self).__name__}"
        point = as_point(objective, params, type(self).__name__)
        point.space.require_whole(name, "has no blocks")
        samples, dense = check_options(name, fisher, samples, seed, sharing, dense)
        loss = point.objective.loss
        if isinstance(loss, Scores) and fisher != "type-2":  # of a Fisher operator: drawn, or taken, anew
            point = point.anew(replace(point.objective, loss=loss.inner))
        if fisher == "type-2":
            require_root(point.objective.loss, name)
        elif fisher == "mc":
            point = Fisher(point, samples=samples, seed=seed).point
        else:
            point = EmpiricalFisher(point).point
        fill(self, point=point, settings=Settings(sharing, dense, fisher))

    @property
    def factors(self) -> KroneckerBlocks:
        """The operator's blocks as data, without the objective's l2: computed once."""
        slots = memo(self)
        if slots.made is None:
            made = self._factors()
            if not self.point.may_keep(made):
                return made
            slots.made = made
        return slots.made  # type: ignore[no-any-return]

    def _prepare(self) -> LinearOperator:
        return with_l2(self.factors, self._l2)

    def _factors(self) -> KroneckerBlocks:
        point, ops = self.point, self.backend
        made = point.gathered(Partial(factor_sums, self.settings))
        plans = _plans_of(made.pieces)
        sums = iter(made.gradient)
        blocks: tuple[Any, ...] = tuple(_block(ops, block, sums) for block in plans)
        places = tuple(block.place for block in plans)
        notes = (*(block.why for block in plans), *self._mixed(made.pieces, blocks))
        estimated = sum(block.kind == "diagonal" and block.place.sizes[1] > 0 for block in plans)
        result = KroneckerBlocks(blocks, places, self.domain, notes, estimated=estimated)
        if not self.corrected:
            return result
        spectral = result.spectral().blocks
        chosen = [basis for block, basis in zip(plans, spectral, strict=True) if block.linear]
        vectors = [side for basis in chosen for side in (basis.left, basis.right) if side is not None]
        found = iter(point.gathered(Partial(corrections, self.settings), *vectors).gradient)
        blocks = tuple(
            Spectral(basis.left, basis.right, positive(ops, next(found))) if block.linear else basis
            for block, basis in zip(plans, spectral, strict=True)
        )
        return replace(result, blocks=blocks)

    def _mixed(self, pieces: tuple[Any, ...], blocks: Any) -> tuple[str, ...]:
        """What there is to say where examples depend on each other, which is also a warning."""
        mixing = next((piece.mixes for piece in pieces if piece.mixes), "")
        if not mixing:
            return ()
        note = f"Examples depend on each other, by {mixing}, which the blocks leave out."
        if self.backend.is_concrete(blocks):
            warnings.warn(f"lg.{type(self).__name__}: {note}", RuntimeWarning, stacklevel=2)
        return (note,)

    # what a matrix is asked

    def inverse(self, damping: Any = 0.0, rule: str = "exact", relative: str | None = None) -> KroneckerBlocks:
        """(K + damping I)^-1 as an operator: see :meth:`linop_gn.KroneckerBlocks.inverse`. An l2 is damping too."""
        return self.factors.inverse_at(self._levels(damping, relative), rule, tell=True)

    def logdet(self, damping: Any = 0.0, relative: str | None = None) -> Scalar:
        """log det (K + damping I); minus infinity where that is singular."""
        return self.factors.logdet_at(self._levels(damping, relative))

    def trace(self) -> Scalar:
        """tr K."""
        total, l2 = self.factors.trace(), self._l2_vector
        ops = self.backend
        return total if l2 is None else total + ops.item(ops.namespace().sum(widened(ops, l2)))

    def frobenius_norm(self) -> Scalar:
        """||K||_F."""
        l2, norm = self._l2_vector, self.factors.frobenius_norm()
        return norm if l2 is None else norm_with_diagonal(self.backend, norm, self.factors.known_diagonal(), l2)

    @property
    def _l2_vector(self) -> Any:
        """The objective's l2 for each entry; None where there is none."""
        return None if self._l2 is None else self._l2 + self.domain.zeros()

    @property
    def partition(self) -> Partition | None:
        """That of :attr:`factors`, which are computed for it."""
        return self.factors.partition

    def known_diagonal(self) -> Any:
        """The diagonal (n,)."""
        return self.prepare().known_diagonal()

    def known_logdet(self, damping: Scalar) -> Scalar | None:
        """:meth:`logdet`, unless the objective's l2 has a number for each parameter."""
        return None if len(getattr(self._l2, "shape", ())) else self.logdet(damping)

    def known_frobenius_norm(self) -> Scalar:
        """:meth:`frobenius_norm`."""
        return self.frobenius_norm()

    def report(self) -> str:
        """A table of the blocks: their names, sizes and kinds, and what is not as one might expect."""
        return self.factors.report()

    def __repr__(self) -> str:
        made = memo(self).made
        options = f"fisher={self.settings.fisher!r}, sharing={self.settings.sharing!r}"
        return f"{super().__repr__()[:-1]}; {options}" + ("" if made is None else f"; {made.described()}") + ")"

    def _levels(self, damping: Any, relative: str | None) -> list[Scalar]:
        """The damping of each block, and of entries in none, with the l2."""
        l2, levels = self._l2, self.factors.levels(damping, relative)
        if l2 is None:
            return levels
        if relative is not None or len(getattr(l2, "shape", ())):
            raise ValueError(
                "the objective's l2 has a number for each parameter, or damping is relative: invert "
                f"lg.{type(self).__name__}(...).factors, which leave the l2 out."
            )
        return [level + l2 for level in levels]


@record
class EKFAC(KFAC):
    """:class:`KFAC` with the best eigenvalues for its eigenvectors: a second pass over the data.

    In the Frobenius norm it is at least as near as KFAC of the same columns to the blocks of the operator, for models
    that treat the examples of the outputs' first axis apart. Embeddings keep KFAC's.

    >>> import linop_gn as lg, torch
    >>> x, y = torch.randn(5, 2, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    >>> net = torch.nn.Linear(2, 3).double()
    >>> fit = lg.Objective(torch.nn.Sequential(net, torch.nn.Tanh()), lg.losses.SquaredError(), (x, y))
    >>> K, E, G = (C(fit, {"0.weight": net.weight, "0.bias": net.bias}).to_dense() for C in (lg.KFAC, lg.EKFAC, lg.GGN))
    >>> bool(torch.norm(E - G) <= torch.norm(K - G))
    True
    """

    __init__ = KFAC.__init__
    corrected = True


def _plans_of(pieces: tuple[Any, ...]) -> tuple[Plan, ...]:
    plans = {piece.plans for piece in pieces}
    if len(plans) > 1:
        raise ValueError(
            "the model does other things with its parameters from batch to batch, so that there are no blocks that "
            "all batches share: make a KFAC for each, objective.with_data(batch)."
        )
    return plans.pop()  # type: ignore[no-any-return]


def _block(ops: Backend, block: Plan, sums: Any) -> Factored:
    """The factors of a block from its sums, in order."""
    xp, L = ops.namespace(), next(sums)
    if block.kind != "kronecker":
        return Factored(L, xp.ones_like(L[..., :1] if len(L.shape) == 2 else L[..., 0, :1]))
    first = L, _mean(xp, next(sums), next(sums))
    if not block.transposed:
        return Factored(*first)
    R = next(sums)
    return Factored(*_joined(xp, first, (_mean(xp, next(sums), next(sums)), R)))


def _mean(xp: Any, total: Array, count: Array) -> Array:
    """The mean input; zero where nothing counts."""
    safe = xp.where(count > 0, count, xp.ones_like(count))
    return total / xp.reshape(safe, (1,) * len(total.shape))


def _joined(xp: Any, first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """One L (x) R for two of them, whose trace is the sum of theirs: sides are means of trace one, by their shares."""
    shares = [traces(xp, L) * traces(xp, R) for L, R in (first, second)]
    total, sides = shares[0] + shares[1], []
    for pair in zip(first, second, strict=True):
        parts = []
        for side, share in zip(pair, shares, strict=True):
            size = traces(xp, side) * total
            good = size > 0
            scale = xp.where(good, share / xp.where(good, size, xp.ones_like(size)), 0.0 * size)
            parts.append(side * xp.reshape(scale, (-1,) + (1,) * (len(side.shape) - 1)))
        sides.append(plus(xp, *parts))
    return sides[0], sides[1] * xp.reshape(total, (-1,) + (1,) * (len(sides[1].shape) - 1))
