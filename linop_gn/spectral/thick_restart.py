"""Thick-restart Lanczos: a few extreme eigenpairs of a symmetric operator, in a basis of bounded size.

Wu and Simon, *Thick-restart Lanczos method for large symmetric eigenvalue problems* (2000). A basis Q of j vectors
grows to m of them. The Ritz pairs of T = Q^T A Q that look best are kept, p of them, and the basis grows again from
the vectors that were next::

    A Q = Q T + P C,  Q <- Q S_p,  T <- Theta_p,  C <- C S_p         T S = S Theta

The vectors P to come are those of a band Lanczos process (Ruhe, 1979): ``block`` of them, and the product with q_j
makes the one that is ``block`` places on. So an eigenvalue is found as often as it occurs, up to ``block`` times.
Where a vector comes out as zero the space is invariant, and a random one takes its place.

||A y - theta y|| of y = Q s is ||C s||: an eigenvalue lies within that of theta, whatever else is true. It is exact as
far as Q is orthonormal; so each vector is orthogonalised twice against all others, and rounding is added to the bound.
Bounds are relative to ||A||, as it shows in the products, and not to theta as in ARPACK: rounding cannot do better,
and an eigenvalue of a singular operator near zero would never be found.

``scipy.sparse.linalg.eigsh`` restarts implicitly, which is the same in exact arithmetic, on the host, and with one
vector: of an eigenvalue that occurs more often it may tell one copy, or some.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from ..lanczos.orthogonal import fresh
from ..protocols import Array, Backend, Scalar, Vector
from ..records import record, static
from ..run.status import Code, alike, verdict
from ..solvers.options import scale_of, scaled_rhs
from ..solvers.problem import LinearProblem

__all__ = ["ENDS", "Best", "ThickRestart", "ThickState", "best"]

ENDS = ("LA", "SA", "BE", "LM")
ROUNDING = 8.0
"""Round-offs of ||A|| that are added to each bound, times the root of the basis's size and twice the restarts."""


class ThickState(NamedTuple):
    """The run, for A / scale."""

    basis: Array
    """Rows q_0 .. : ``filled`` that were multiplied, then those to come."""
    H: Array
    """H[i, j] = q_i.A q_j, for the vectors there were when q_j was multiplied."""
    filled: Scalar
    scale: Scalar
    """A power of two near ||A||."""
    size: Scalar
    """||A||, estimated from its products."""
    worst: Scalar
    """The largest bound of the pairs wanted, at the latest restart."""
    found: Scalar
    """How many pairs met the tolerance then."""
    restarts: Scalar
    fresh: Scalar
    """How many random vectors were drawn."""
    status: Scalar
    steps: Scalar
    products: Scalar


class ThickRow(NamedTuple):
    """Pairs that met the tolerance at the latest restart; the largest bound of those wanted."""

    found: Scalar
    worst: Scalar


class Best(NamedTuple):
    """The Ritz pairs that were asked for, best first, and those that go on."""

    values: Array
    bounds: Array
    vectors: Array
    """Their coefficients (m, k)."""
    met: Array
    kept: tuple[Array, Array, Array, Scalar]
    """Those that may go on: values, coefficients, and parts along the vectors to come; and how many of them do."""
    done: Scalar
    floor: Scalar
    allowed: Scalar
    """The tolerance on a bound; where values are squares, on that of their roots."""


@record
class ThickRestart:
    """The method, for k pairs of the end ``which``."""

    tolerance: Scalar
    limit: Scalar
    """Products."""
    seed: Scalar
    k: int = static()
    which: str = static()
    basis: int = static()
    block: int = static()
    kept: int = static()
    """Pairs that go on, at most."""
    roundings: Scalar = 0.0
    """The tolerance is at least so many times what rounding adds to a bound, up to the root of round-off."""
    squares: bool = static(default=False)
    """Whether the tolerance is on the eigenvalues' roots, relative to the root of ||A||."""

    title: ClassVar[str] = "thick-restart Lanczos"

    def init(self, ops: Backend, problem: LinearProblem) -> ThickState:
        """``block`` orthonormal vectors: the right-hand side, or a random one where that is zero, and random ones."""
        like, space, capacity = problem.rhs, problem.operator.domain, self._capacity(problem)
        Q, none, zero = ops.basis(like, capacity), ops.scalar(0, like), ops.scalar(0.0, like)
        r, _, _, _, finite = scaled_rhs(ops, like)
        length = ops.sqrt(ops.dot(r, r))
        w, made = ops.branch(
            length > 0, lambda r, length: (r, length), lambda r, _: fresh(ops, Q, space, self.seed, 0), r, length
        )
        Q = ops.store(Q, 0, ops.divide(1.0, made), w)
        for i in range(1, self.block):
            w, made = fresh(ops, Q, space, self.seed + i, i)
            Q = ops.store(Q, i, ops.divide(1.0, made), w)
        table = ops.small([0.0], like)
        return ThickState(
            basis=Q,
            H=ops.small_namespace().zeros((capacity, self.basis), dtype=table.dtype),
            scale=zero + 1.0,
            size=zero,
            worst=zero + float("inf"),
            fresh=none + self.block,
            status=ops.where(finite, Code.RUNNING, Code.NONFINITE_INPUT) + none,
            **alike("filled found restarts steps products", none),
        )

    def _capacity(self, problem: LinearProblem) -> int:
        n: int = problem.rhs.shape[0]
        return min(self.basis + self.block, n)

    def step(self, ops: Backend, problem: LinearProblem, s: ThickState) -> ThickState:
        """One product, and a restart where the basis is full."""
        eps, capacity, m, b = ops.eps(problem.rhs), self._capacity(problem), self.basis, self.block
        xp, no = ops.small_namespace(), ops.logical_not
        running, j = s.status == Code.RUNNING, ops.minimum(s.filled, m - 1)
        stored = ops.minimum(j + b, capacity)
        w = problem.operator.apply(ops.row(s.basis, j))
        n = problem.rhs.shape[0]
        (scale,) = ops.branch(s.steps == 0, lambda w: (scale_of(ops, w, times=n**0.5),), lambda w: (s.scale,), w)
        w = ops.scale(ops.divide(1.0, scale), w)
        reach = ops.sqrt(ops.dot(w, w))
        size = ops.maximum(s.size, reach)
        first = ops.project(s.basis, w, stored)
        w = ops.deflate(s.basis, first, w, stored)
        second = ops.project(s.basis, w, stored)
        w = ops.deflate(s.basis, second, w, stored)
        h, length = first + second, ops.sqrt(ops.dot(w, w))

        row, column, index = xp.arange(capacity)[:, None], xp.arange(m)[None, :], xp.arange(m)
        there = xp.sum(xp.where(row == j, s.H, 0.0), axis=0)  # q_j.A q_i, from when q_i was multiplied
        skewness = ops.item(xp.max(xp.where(index < j, xp.abs(h[:m] - there), 0.0)))
        sound = running & ops.isfinite(reach + length)
        skew = sound & (skewness > eps ** (1 / 3) * size)
        counted = sound & no(skew)

        room, space = j + b < capacity, problem.operator.domain
        invariant = room & (length <= 10.0 * eps * size)
        w, made = ops.branch(
            counted & invariant,
            lambda w, _: fresh(ops, s.basis, space, self.seed + 1 + s.fresh, stored),
            lambda w, length: (w, length),
            w,
            length,
        )
        place = ops.minimum(j + b, capacity - 1)
        w = ops.select(counted & room, w, ops.row(s.basis, place))
        basis = ops.store(s.basis, place, ops.where(counted & room, ops.divide(1.0, made), 1.0), w)
        coupling = ops.where(room & no(invariant), length, 0.0)
        entries = h[:, None] + xp.where(row == j + b, xp.asarray(coupling), 0.0)
        H = xp.where(xp.asarray(counted) & (column == j), entries, s.H)

        steps = s.steps + counted
        s = s._replace(
            basis=basis,
            H=H,
            filled=ops.where(counted, j + 1, s.filled),
            scale=ops.where(counted, scale, s.scale),
            size=ops.where(counted, size, s.size),
            fresh=s.fresh + (counted & invariant),
            status=verdict(ops, s.status, (running & no(sound), Code.NONFINITE), (skew, Code.NOT_SYMMETRIC)),
            steps=steps,
            products=s.products + running,
        )
        full = counted & ((s.filled >= m) | (steps >= self.limit))

        def restart(*parts: Any) -> tuple[Any, ...]:
            return self._restarted(ops, problem, s._replace(basis=parts[0], H=parts[1]))

        def go_on(*parts: Any) -> tuple[Any, ...]:
            return *parts, s.filled, s.worst, s.found, s.restarts, s.status

        names = ["basis", "H", "filled", "worst", "found", "restarts", "status"]
        return s._replace(**dict(zip(names, ops.branch(full, restart, go_on, s.basis, s.H), strict=True)))

    def _restarted(self, ops: Backend, problem: LinearProblem, s: ThickState) -> tuple[Any, ...]:
        """What changes where the basis is full: the verdict, and if the run goes on the basis that it goes on from."""
        xp, most, b = ops.small_namespace(), self.kept, self.block
        pick = best(ops, problem, self, s)
        worst = ops.item(xp.max(pick.bounds)) + pick.floor
        found = _count(ops, pick.met)
        out = s.steps >= self.limit
        status = verdict(
            ops,
            ops.where(out, Code.MAX_STEPS, s.status),
            (found >= self.k, Code.CONVERGED),
            (pick.done, Code.STAGNATED),
        )
        going = status == Code.RUNNING

        def restart(basis: Array, H: Array) -> tuple[Array, Array, Scalar]:
            values, S, along, p = pick.kept
            Y = ops.combine(basis, ops.leading(S.T, p).T, s.filled)  # p columns, or as many as there may be
            end: int = Y.shape[1]
            for i in range(b):
                basis = ops.store(basis, end + i, 1.0, ops.copy(ops.row(basis, s.filled + i)))
            basis = ops.repeat(end, lambda i, basis: ops.store(basis, i, 1.0, Y[:, i]), basis)
            for i in range(b):  # over those that do not go on
                basis = ops.store(basis, p + i, 1.0, ops.copy(ops.row(basis, end + i)))
            row, column = xp.arange(basis.shape[0])[:, None], xp.arange(most)[None, :]
            H = xp.where(row == column, values[None, :], 0.0)
            for i in range(b):
                H = xp.where(row == p + i, along[i][None, :], H)
            H = xp.where(column < p, H, 0.0)
            pad = xp.zeros((basis.shape[0], self.basis - most), dtype=H.dtype)
            return basis, xp.concat([H, pad], axis=1), p

        basis, H, filled = ops.branch(going, restart, lambda basis, H: (basis, H, s.filled), s.basis, s.H)
        return basis, H, filled, worst, found, s.restarts + going, status

    def observe(self, state: ThickState) -> ThickRow:
        return ThickRow(state.found, state.worst * state.scale)

    def answer(self, ops: Backend, problem: LinearProblem, state: ThickState) -> Vector:
        """The eigenvectors (n, k)."""
        pick = best(ops, problem, self, state)
        return ops.combine(state.basis, pick.vectors, state.filled)


def best(ops: Backend, problem: LinearProblem, method: ThickRestart, s: ThickState) -> Best:
    """The Ritz pairs of the basis as it is, those that were asked for first; in units of the state's scale."""
    xp, eps, m, b = ops.small_namespace(), ops.eps(problem.rhs), method.basis, method.block
    index, capacity = xp.arange(m), s.H.shape[0]
    beyond, size = index >= s.filled, xp.asarray(s.size)
    lower = xp.where(beyond[:, None] | beyond[None, :], 0.0, xp.tril(s.H[:m]))
    T = lower + xp.tril(lower, -1).T + xp.diag(xp.where(beyond, 4.0 * size + 1.0, 0.0))  # above all others
    values, S = _refined(xp, T, *xp.linalg.eigh(T))
    key = {"LA": -values, "SA": values, "LM": -xp.abs(values)}.get(method.which)
    if key is None:  # from both ends, the upper one first
        key = 1.0 * xp.minimum(2 * (s.filled - 1 - index), 2 * index + 1)
    order = xp.argsort(xp.where(beyond, xp.inf, key))
    ahead = s.filled + xp.arange(b)
    coming = xp.where((ahead < capacity)[:, None], xp.take(s.H, xp.minimum(ahead, capacity - 1), axis=0), 0.0)
    along = _times(xp, xp.where(beyond[None, :], 0.0, coming), S)
    bounds = xp.sqrt(xp.sum(along * along, axis=0))
    first, keep = order[: method.k], order[: method.kept]
    there = first < s.filled
    floor = ROUNDING * eps * s.size * (m + 2.0 * s.restarts) ** 0.5
    mine = xp.take(bounds, first)
    allowed, bar = _tolerance(ops, method, s.size, floor, eps, xp.take(values, first))
    met = there & (mine + floor <= bar)
    level = there & (mine <= floor)
    p = _worth_keeping(ops, method, xp.take(values, order), s.filled, met)
    kept = xp.take(values, keep), xp.take(S, keep, axis=1), xp.take(along, keep, axis=1), p
    done = _count(ops, met | level) >= method.k
    found = xp.where(there, xp.take(values, first), xp.nan), xp.where(there, mine, xp.inf)
    return Best(*found, xp.take(S, first, axis=1), met, kept, done, floor, allowed)


def _tolerance(
    ops: Backend, method: ThickRestart, size: Scalar, floor: Scalar, eps: float, values: Array
) -> tuple[Scalar, Any]:
    """The tolerance, and what bounds may be for it.

    A bound r of theta = sigma^2 is one of r / sigma for sigma, and sigma one of itself: a value of zero is nearby.
    """
    xp, least = ops.small_namespace(), ops.minimum(method.roundings * floor, eps**0.5 * size)
    if not method.squares:
        allowed = ops.maximum(method.tolerance * size, least)
        return allowed, allowed
    allowed = ops.maximum(method.tolerance * ops.sqrt(size), ops.sqrt(least))
    return allowed, allowed * xp.maximum(xp.sqrt(xp.maximum(values, 0.0)), xp.asarray(allowed))


def _times(xp: Any, a: Array, b: Array) -> Array:
    """a b; in single precision by sums, for a matrix product of a compiled program may round its factors first."""
    return a @ b if a.dtype == xp.float64 else xp.sum(a[:, :, None] * b[None, :, :], axis=1)


def _refined(xp: Any, T: Array, values: Array, S: Array) -> tuple[Array, Array]:
    """Eigenpairs of T; in single precision one step of Newton and Schulz nearer to orthonormal, with their quotients.

    What rounding leaves in S goes into the basis at each restart, and what it leaves in the values into the next T.
    """
    if S.dtype == xp.float64:
        return values, S
    S = S - 0.5 * _times(xp, S, _times(xp, S.T, S) - xp.eye(S.shape[0], dtype=S.dtype))
    return xp.sum(S * _times(xp, T, S), axis=0), S


def _worth_keeping(ops: Backend, method: ThickRestart, values: Array, filled: Scalar, met: Array) -> Scalar:
    """How many pairs to go on with: p that makes the slowest pair wanted come fastest, of values best first.

    Of a pair outside of the interval that the values from p on span, by gamma of its length, the other parts fall with
    a Chebyshev polynomial of m - p degrees, as exp(-(m - p) arccosh(1 + 2 gamma)) (Yamazaki, Bai, Simon, Wang and Wu,
    2010). The values from p on are estimates too, and too good: few more are kept than were wanted and found.
    """
    xp = ops.small_namespace()
    index = xp.arange(values.shape[0], dtype=xp.int32)
    left = (index[None, :] >= index[:, None]) & (index[None, :] < filled)
    high = xp.max(xp.where(left, values[None, :], -xp.inf), axis=1)
    low = xp.min(xp.where(left, values[None, :], xp.inf), axis=1)
    wanted = xp.where(met, xp.nan, values[: method.k])
    outside = xp.maximum(wanted[None, :] - high[:, None], low[:, None] - wanted[None, :])
    nearest = xp.min(xp.where(met[None, :], xp.inf, outside), axis=1)
    gamma = xp.maximum(nearest, 0.0) / xp.maximum(high - low, xp.finfo(values.dtype).tiny)
    pace = (method.basis - index) * xp.arccosh(1.0 + 2.0 * gamma)
    most = method.k + (method.basis - method.k) // 4 + _count(ops, met)
    allowed = (index >= min(method.k, method.kept)) & (index <= most) & (index <= method.kept)
    pace = xp.where(allowed & xp.isfinite(pace), pace, -1.0)
    return xp.max(xp.where(pace == xp.max(pace), index, 0))


def _count(ops: Backend, mask: Array) -> Scalar:
    """How many are true."""
    xp = ops.small_namespace()
    return xp.sum(xp.where(mask, 1, 0), dtype=xp.int32)
