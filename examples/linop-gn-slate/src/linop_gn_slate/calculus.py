"""Derivatives by slate: one recorded forward, and reverse mode on the record.

J^T u is linear in u, so that its own cotangent with respect to u, pulled back
from v, is J v: forward mode from two reverse passes, the first of them kept.
"""

import slate

from linop_gn.backend import CalculusDefaults, LinearizationDefaults

__all__ = ["GradientLinearization", "Linearization", "SlateCalculus"]


def _pulled(ends, starts):
    """One reverse pass; what comes back belongs to no record."""
    return _own(slate.pull(ends, starts), starts)


def _plain(x):
    return slate.Array(x.value)


def _recorded(params):
    return [slate.record(slate.asarray(_plain(p), copy=True)) for p in params]


def _slopes(function, leaves):
    """Value of a scalar function of recorded leaves, and its gradient, recorded too."""
    value = function(leaves)
    if value.ndim:
        raise ValueError(f"a scalar function is needed here, not outputs of shape {value.shape}: reduce them.")
    return _plain(value), slate.pull([(value, slate.ones_like(_plain(value)))], leaves)


def _own(found, leaves):
    """New arrays that belong to no record, exact zeros for None."""
    return [
        slate.zeros_like(_plain(x)) if u is None else slate.asarray(_plain(u), copy=True)
        for x, u in zip(leaves, found, strict=True)
    ]


class Linearization(LinearizationDefaults):
    """See ``linop_gn.protocols.Linearization``."""

    def __init__(self, function, params, cotangent):
        self._leaves = _recorded(params)
        self._end = function(self._leaves)
        self.outputs = _plain(self._end)
        self._u = slate.record(_plain(cotangent(self.outputs)))
        self._transposed = slate.pull([(self._end, self._u)], self._leaves)  # J^T u, recorded from u
        self.gradient = _own(self._transposed, self._leaves)

    def jvp(self, tangents, only=None):
        """J v."""
        rows = self._transposed if only is None else [self._transposed[i] for i in only]
        ends = [(g, v) for g, v in zip(rows, tangents, strict=True) if g is not None]
        return _pulled(ends, [self._u])[0]

    def vjp(self, cotangent, only=None):
        """J^T u."""
        return _pulled([(self._end, cotangent)], self._leaves if only is None else [self._leaves[i] for i in only])


class GradientLinearization:
    """See ``linop_gn.protocols.GradientLinearization``."""

    def __init__(self, function, params):
        self._leaves = _recorded(params)
        self.value, self._slopes = _slopes(function, self._leaves)
        self.gradient = _own(self._slopes, self._leaves)

    def hvp(self, tangents):
        """H v: the gradient's record, pulled back from v."""
        ends = [(g, v) for g, v in zip(self._slopes, tangents, strict=True) if g is not None]
        return _pulled(ends, self._leaves)


class SlateCalculus(CalculusDefaults):
    """See ``linop_gn.protocols.Calculus``: models are plain functions, which is what is inherited."""

    def evaluate(self, function, params):
        """The value; nothing is recorded."""
        return function([_plain(p) for p in params])

    linearize = Linearization
    linearize_gradient = GradientLinearization

    def gradient(self, function, params, cotangent=None):
        """Value and gradient, or outputs and J^T ``cotangent(outputs)``."""
        leaves = _recorded(params)
        if cotangent is not None:
            out = function(leaves)
            return _plain(out), _pulled([(out, cotangent(_plain(out)))], leaves)
        value, slopes = _slopes(function, leaves)
        return value, _own(slopes, leaves)

    def jacobian_rows(self, function, params, rows):
        """One reverse pass for each row."""
        leaves = _recorded(params)
        out = function(leaves)
        return [_pulled([(out, _unit(out, row))], leaves) for row in rows]

    def hessian_rows(self, function, params, rows):
        """One reverse pass through the gradient's record for each row."""
        curve, found = GradientLinearization(function, params), []
        for row in rows:
            units = []
            for leaf in curve.gradient:
                units.append(_unit(leaf, row) if 0 <= row < leaf.size else slate.zeros_like(leaf))
                row -= leaf.size
            found.append(curve.hvp(units))
        return found


def _unit(like, index):
    unit = slate.zeros_like(_plain(like))
    unit.value.reshape(-1)[index] = 1
    return unit
