r"""The spectral density of a symmetric operator, by stochastic Lanczos quadrature: :func:`spectral_density`.

Of a random probe v of signs, v.f(A) v / n is an estimate of the mean of f over the eigenvalues of A. The Lanczos
process of v gives a Gauss rule of it: nodes theta_j, weights w_j, exact for polynomials f of a degree below 2 m (Golub
and Welsch, 1969; Ubaru, Chen and Saad, 2017). So p probes are p discrete densities, whose mean is that of A::

    phi(x) = 1/p sum_i sum_j w_ij  N(x; theta_ij, width)

What the probes scatter is the standard error. The basis is orthogonalised: without that, copies of converged values
would be nodes too. SciPy has nothing of the kind.

Of the share at or below x, which is no polynomial, a rule leaves something open: by the inequalities of Chebyshev,
Markov and Stieltjes the true one of the probe lies between the sum of the weights up to x without that of the last
node, and the sum with that of the next one. Nodes that have become eigenvalues are known and count in full; of the
others these two are open, and half of what lies between counts in the error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import draws, html
from ..arguments import needed, require_number, whole
from ..distributed.watching import together, told_to_all
from ..foreign import advised
from ..lanczos import answers
from ..lanczos.basis import Krylov, krylov
from ..operators.base import LinearOperator
from ..protocols import Vector
from ..records import record, static
from ..run.loop import Look, Watcher, watched, watchers_of
from ..run.solution import History
from ..run.status import Code, Status
from .estimate import check_operator, require_symmetric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Density", "Smooth", "jensen_shannon", "spectral_density"]

NDArray = np.ndarray[Any, Any]
POINTS = 400
"""Of a grid that was not given."""
WIDTH = 0.01
"""Of a smoothed density, as a share of the range."""
DECADES = 0.1
"""The same on a logarithmic axis."""
FOUND = 1e-6
"""A Ritz value with a bound of at most this share of the norm is an eigenvalue."""
SURE = 0.1
"""A node is known to be on its side of x where its bound is at most this share of how far x is."""
ROUNDING = 8.0
"""Round-offs of the norm within which a Ritz value is zero."""


class Smooth(NamedTuple):
    """A density on a grid: the mean over probes, and its standard error."""

    x: NDArray
    mean: NDArray
    standard_error: NDArray


@record
class Density:
    """Of :func:`spectral_density`: for each probe a discrete density of m nodes, in NumPy.

    Attributes
    ----------
    nodes, weights
        (probes, m): Ritz values, and the share of the eigenvalues that each stands for; NaN and 0 where a space ended.
        Probes with products that were not finite are left out; both are NaN where there were no others.
    bounds
        (probes, m): an eigenvalue lies within that of each node.
    size
        Eigenvalues there are.
    code
        ``COMPLETED``, ``STOPPED``, or the code of the first probe that failed.
    products
        With the operator.
    rounding
        Of the operator's dtype: 1 + rounding is the number after 1.
    psd
        Whether the operator is known to be positive semi-definite, and nothing to be below zero.
    """

    nodes: NDArray
    weights: NDArray
    bounds: NDArray
    code: int
    products: int
    size: int = static()
    rounding: float = static(default=0.0)
    psd: bool = static(default=False)

    @property
    def status(self) -> Status:
        """How the run ended."""
        return Status(self.code)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest node: the spectrum's ends, nearly."""
        known = self.nodes[np.isfinite(self.nodes)]
        return (float(known.min()), float(known.max())) if known.size else (math.nan, math.nan)

    def mean(self, function: Any) -> tuple[float, float]:
        """The mean of ``function`` over the eigenvalues (n times it is the trace of f(A)), and its standard error.

        The error is of the probes' scatter: of functions that are nearly polynomials of a degree below 2 m. A step is
        none: see :meth:`below`.

        >>> import numpy as np, linop_gn as lg
        >>> phi = lg.spectral_density(lg.Diagonal(np.arange(1.0, 101.0)), probes=4, steps=20)
        >>> round(phi.mean(lambda x: x)[0], 6)
        50.5
        """
        return _over_probes(np.where(self.weights > 0, function(self._safe), 0.0) * self.weights)

    def below(self, x: float) -> tuple[float, float]:
        """The share of the eigenvalues at or below x, to rounding, and its error.

        The share is the middle of what the nodes near x leave open, and the error counts the probes' scatter and half
        of what is open: more steps, or an x in a gap, leave less.
        """
        share, scatter, open_ = self._below(x)
        return share, math.hypot(scatter, open_)

    def _below(self, x: float) -> tuple[float, float, float]:
        """The share, its standard error, and half of what is open."""
        level = x + self._noise
        if self.psd and level < 0 and not math.isnan(self.range[0]):
            return 0.0, 0.0, 0.0
        nodes, used = self._safe, self.weights > 0
        under = nodes <= level
        doubtful = used & (self.bounds > np.maximum(self._noise, SURE * abs(nodes - level)))
        ends = (doubtful & under, -1), (doubtful & ~under, 1)
        lost, more = (
            np.where(side.any(axis=1), _at(self.weights, np.where(side, sign * nodes, np.inf).argmin(axis=1)), 0.0)
            for side, sign in ends
        )
        middle, error = _mean_and_error((under * self.weights).sum(axis=1) + 0.5 * (more - lost))
        return float(middle), float(error), float(0.5 * np.mean(more + lost))

    def smooth(self, x: Any = None, width: float | None = None, log: bool = False) -> Smooth:
        """The density on a grid, each node a Gaussian. The standard error is of the probes' scatter, for this width.

        Parameters
        ----------
        x
            Points; 400 over the range if it is not given.
        width
            Standard deviation of the Gaussians: a hundredth of the range, or on a logarithmic axis .1 decades.
        log
            Whether the axis is log10 of the magnitude: of the positive nodes for x > 0, of the negative ones for
            x < 0; the density is one per decade of the magnitude. Nodes that are zero to rounding are left out, so
            that the integrals over both sides add up to the share of the others.
        """
        low, high = self.range
        width = (DECADES if log else WIDTH * span_of(low, high)) if width is None else width
        if not math.isnan(low):
            require_number("smooth", "width", width, positive=True)
        grid = self._grid(log, width) if x is None else np.asarray(x, dtype=float)
        if grid.ndim != 1 or not np.isfinite(grid).all() or (log and (grid == 0).any()):
            raise ValueError("smooth: x must be a vector of finite numbers, on a logarithmic axis none of them zero.")
        if math.isnan(low):  # no probe came through
            return Smooth(grid, np.full(grid.shape, math.nan), np.full(grid.shape, math.nan))
        nodes, weights = self._safe, self.weights
        if log:
            least = self._noise
            weights = np.where(abs(nodes) > least, weights, 0.0)
            sides, places = np.sign(nodes), np.log10(np.maximum(abs(nodes), least or 1.0))
            same = sides[:, :, None] == np.sign(grid)
            distance = places[:, :, None] - np.log10(abs(grid))
        else:
            same, distance = np.True_, nodes[:, :, None] - grid
        bumps = np.where(same, np.exp(-0.5 * (distance / width) ** 2), 0.0) / (width * math.sqrt(2 * math.pi))
        each = np.einsum("pm,pmg->pg", weights, bumps)
        return Smooth(grid, *_mean_and_error(each))

    def outliers(self) -> NDArray:
        """Eigenvalues outside of the bulk, largest magnitude first: those that the spaces of all probes hold.

        Of each probe a node counts whose bound is at most 1e-6 times the norm; where all have it, the mean is told.
        """
        norm = max(map(abs, self.range))
        least = FOUND * norm
        rows = zip(self.nodes, self.bounds, self.weights, strict=True)
        first, *others = [row[(bound <= least) & (w > 0)] for row, bound, w in rows]
        found = [[v, *(o[np.argmin(abs(o - v))] for o in others if len(o))] for v in first]
        kept = [float(np.mean(v)) for v in found if len(v) == 1 + len(others) and np.ptp(v) <= 2 * least]
        return np.array(sorted(kept, key=lambda v: -abs(v)))

    def plot(self, log: bool = False, figure: Any = None) -> Figure:
        """A picture: the density with a band of two standard errors, and the outliers as ticks."""
        drawing = needed("matplotlib.figure", "plots are drawn by matplotlib", "plots")
        figure = drawing.Figure(figsize=(6.4, 3.2), layout="constrained") if figure is None else figure
        found, axes = self.smooth(log=log), figure.subplots()
        for side in (found.x > 0, found.x < 0) if log else (np.full(found.x.shape, True),):
            if side.any():
                x, y, e = found.x[side], found.mean[side], found.standard_error[side]
                name = None if not log else "positive" if x[0] > 0 else "negative"
                (line,) = axes.plot(abs(x) if log else x, y, label=name, linewidth=1.4)
                edges = np.maximum(y - 2 * e, 0), y + 2 * e
                axes.fill_between(abs(x) if log else x, *edges, alpha=0.25, color=line.get_color(), linewidth=0)
        outliers = self.outliers()
        axes.plot(abs(outliers) if log else outliers, np.zeros(len(outliers)), "k|", label=f"found {len(outliers)}")
        axes.set_yscale("symlog", linthresh=1e-2 * float(found.mean.max() or 1.0))
        axes.set_ylim(0)
        if log:
            axes.set_xscale("log")
        axes.set_xlabel("magnitude of the eigenvalue" if log else "eigenvalue")
        axes.set_ylabel("density per decade" if log else "density")
        axes.legend(frameon=False)
        made: Figure = figure
        return made

    @property
    def _noise(self) -> float:
        """What rounding may make of a zero eigenvalue."""
        return ROUNDING * self.rounding * max(map(abs, self.range))

    @property
    def _safe(self) -> NDArray:
        made: NDArray = np.where(self.weights > 0, self.nodes, self.range[1])
        return made

    def _grid(self, log: bool, width: float) -> NDArray:
        low, high = self.range
        if math.isnan(low):
            return np.ones(1)
        if not log:
            return np.linspace(low - 4 * width, high + 4 * width, POINTS)
        nodes, sides = self._safe, []
        for sign in (-1, 1):
            mine = sign * nodes[sign * nodes > self._noise]
            if len(mine):
                ends = math.log10(mine.min()) - 4 * width, math.log10(mine.max()) + 4 * width
                sides.append(sign * np.logspace(*ends, POINTS)[::sign])
        return np.concatenate(sides) if sides else np.ones(1)

    def __repr__(self) -> str:
        low, high = self.range
        probes, steps = self.nodes.shape
        head = f"Density: {probes} probes of {steps} steps, {self.products} products; {self.status.name.lower()}"
        share, scatter, open_ = self._below(0.0)
        error = math.hypot(scatter, open_)
        shown = f"from {low:.6g} to {high:.6g}; {share:.3g} +- {error:.1g} of the eigenvalues at or below zero"
        if open_ > scatter:
            shown = f"{shown} (more steps would tell better)"
        return f"{head}\n{shown}\n{self.status.sentence}"

    def _repr_html_(self) -> str:
        return html.page(repr(self), html.picture({"density, from low to high": self.smooth().mean}))


def span_of(low: float, high: float) -> float:
    """high - low; of a single value its magnitude, or one."""
    return (high - low) or max(abs(high), 1.0)


def _mean_and_error(each: NDArray) -> tuple[NDArray, NDArray]:
    p = len(each)
    error = each.std(axis=0, ddof=1) / math.sqrt(p) if p > 1 else np.full(each.shape[1:], math.inf)
    return each.mean(axis=0), error


def _at(rows: NDArray, index: NDArray) -> NDArray:
    """The entry of each row at an index."""
    made: NDArray = np.take_along_axis(rows, index[:, None], axis=1)[:, 0]
    return made


def _over_probes(shares: NDArray) -> tuple[float, float]:
    mean, error = _mean_and_error(shares.sum(axis=1))
    return float(mean), float(error)


@told_to_all
@advised
def spectral_density(
    A: LinearOperator,
    *,
    probes: int = 8,
    steps: int = 64,
    block: str | None = None,
    seed: int = 0,
    watch: Sequence[Watcher] = (),
) -> Density:
    """How the eigenvalues of a symmetric operator are distributed: probes x steps products.

    Parameters
    ----------
    A
        Symmetric operator, on any backend.
    probes
        Random vectors: the standard error falls with their root, and is infinite of one.
    steps
        Of the Lanczos process of each: the resolution is about the range over that, finer at the ends. A bulk many
        decades below the largest eigenvalue takes more to tell from zero.
    block
        The density of this block alone, by the name that it has in ``A.partition``.
    seed
        Of the probes, which are the same on every backend.
    watch
        Watchers, such as ``lg.ProgressBar()``, shown a look after each probe; one that stops the run keeps those.

    >>> import numpy as np, linop_gn as lg
    >>> phi = lg.spectral_density(lg.Diagonal(np.linspace(0.0, 1.0, 500)), probes=4, steps=20)
    >>> share, error = phi.below(0.5)
    >>> bool(abs(share - 0.5) < 0.1), phi.smooth().mean.shape
    (True, (400,))

    Raises
    ------
    TypeError, ValueError
        For an operator that is not known to be symmetric, or counts below one.
    """
    check_operator("spectral_density", A)
    probes, steps = whole("spectral_density", "probes", probes, 1), whole("spectral_density", "steps", steps, 1)
    draws.check_seed("spectral_density", seed)
    require_symmetric(
        "spectral_density",
        A,
        "the squares of its singular values are the spectrum of A.T @ A, the largest of them lg.svds(A)",
    )
    if not A.backend.is_concrete(A):
        raise TypeError("spectral_density: a density is made on the host; call it outside of jit.")
    ready, (inside, size) = A.prepare(), _within(A, block)

    def probe(i: int) -> Vector:
        v = draws.signs(A.domain, seed, i)
        return v if inside is None else v * inside

    def run() -> Iterator[tuple[Look, list[Krylov]]]:
        spaces: list[Krylov] = []
        for i in range(probes + 1):
            failed = bool(spaces) and not spaces[-1].status.succeeded
            status = int(spaces[-1].status) if failed else Code.COMPLETED if i == probes else Code.RUNNING
            rows = History(products=np.array([float(sum(int(K.products) for K in spaces))]))
            yield Look("spectral density", i, probes, status, rows, i), spaces
            if i < probes and not failed:
                spaces = [*spaces, krylov(ready, probe(i), steps, seed=seed)]

    with np.errstate(all="ignore"):  # the status tells
        spaces, stopped = watched(run(), together(A.reduction, A.backend, A.domain.zeros(), watchers_of(watch)))
    if not spaces:
        raise ValueError("spectral_density: a watcher stopped the run before its first probe.")
    code = Code.STOPPED if stopped else Code.COMPLETED if spaces[-1].status.succeeded else int(spaces[-1].status)
    sound = [space for space in spaces if space.status.succeeded] or spaces[:1]
    parts = [_rule(space, steps) for space in sound]
    nodes, weights, bounds = (np.stack([part[i] for part in parts]) for i in range(3))
    eps = A.backend.eps(A.domain.zeros())
    return Density(nodes, weights, bounds, int(code), sum(int(K.products) for K in spaces), size, eps, A.psd)


def _within(A: LinearOperator, block: str | None) -> tuple[Vector | None, int]:
    """Ones in the block's entries and zeros elsewhere, and how many it has; None and n for the whole."""
    if block is None:
        return None, A.domain.size
    known = {part.name: part for part in A.partition or ()}
    if block not in known:
        has = f"blocks {list(known)}" if known else "none: lg.BlockGGN(...) is an operator of blocks"
        raise ValueError(f"spectral_density: the operator has no block {block!r}; it has {has}.")
    inside = np.zeros(A.domain.size)
    for start, stop in known[block].ranges:
        inside[start:stop] = 1.0
    return A.backend.asarray(inside, A.dtype, A.domain.device), int(inside.sum())


def _rule(space: Krylov, steps: int) -> tuple[NDArray, NDArray, NDArray]:
    """Nodes, shares and bounds of one probe, each (steps,)."""
    ops = space.space.backend
    nodes, weights = (np.asarray(ops.read(part), dtype=float) for part in ops.call(answers.rule, space))
    ritz = space.eigenvalues()
    bounds = np.asarray(ops.read(ritz.bounds), dtype=float)
    made = [np.full(steps, math.nan), np.zeros(steps), np.full(steps, math.inf)]
    if not space.status.succeeded:
        return made[0], np.full(steps, math.nan), made[2]
    kept = np.isfinite(nodes) & (weights > 0)
    total = weights[kept].sum()
    count = int(kept.sum())
    if count:
        order = np.argsort(nodes[kept])
        made[0][:count], made[1][:count] = nodes[kept][order], weights[kept][order] / total
        theirs = np.asarray(ops.read(ritz.values), dtype=float)
        nearest = abs(made[0][:count, None] - theirs).argmin(axis=1)
        made[2][:count] = bounds[nearest]
    return made[0], made[1], made[2]


def jensen_shannon(a: Density, b: Density, width: float | None = None, log: bool = False) -> float:
    """The Jensen-Shannon distance of two densities, 0 for equal ones, 1 where they have nothing in common.

    The root of the divergence to base 2 of the two, smoothed on one grid; on a logarithmic axis zeros are a place of
    their own. NaN where a density is.

    Parameters
    ----------
    a, b
        Of the blocks of a network, say.
    width, log
        As of :meth:`Density.smooth`; the width is by default a hundredth of the range of both.

    >>> import numpy as np, linop_gn as lg
    >>> low, high = (lg.spectral_density(lg.Diagonal(c + np.linspace(0, 1, 100))) for c in (0.0, 9.0))
    >>> round(lg.jensen_shannon(low, low), 6), round(lg.jensen_shannon(low, high), 3)
    (0.0, 1.0)
    """
    if math.isnan(a.range[0] + b.range[0]):
        return math.nan
    if log:
        width = DECADES if width is None else width
        grid = np.unique(np.concatenate([a._grid(True, width), b._grid(True, width)]))
        step = np.gradient(np.log10(abs(grid))) if len(grid) > 1 else np.zeros(1)
        step = np.where(np.isfinite(step), abs(step), 0.0)
    else:
        ends = min(a.range[0], b.range[0]), max(a.range[1], b.range[1])
        width = WIDTH * span_of(*ends) if width is None else width
        grid = np.linspace(ends[0] - 4 * width, ends[1] + 4 * width, 4 * POINTS)
        step = np.full(len(grid), grid[1] - grid[0])
    p, q = (density.smooth(grid, width, log).mean * step for density in (a, b))
    if log:
        p, q = (np.append(r, _over_probes((abs(d._safe) <= d._noise) * d.weights)[0]) for r, d in ((p, a), (q, b)))
    p, q = p / p.sum(), q / q.sum()
    middle = 0.5 * (p + q)

    def divergence(r: NDArray) -> float:
        there = (r > 0) & (middle > 0)  # half of the least number is none
        return float(np.sum(r[there] * np.log2(r[there] / middle[there])))

    return math.sqrt(max(0.0, 0.5 * (divergence(p) + divergence(q))))
