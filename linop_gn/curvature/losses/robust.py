r"""Robust losses of residuals, whose large ones count less than by their squares.

With r = z - y, the width C and s = (r / C)^2, the loss is C^2 rho(s) / 2, as in ``scipy.optimize.least_squares``
(where C is ``f_scale``):

================= ===================== ==============
loss              rho(s)                convex
================= ===================== ==============
:class:`Huber`    min(s, 2 sqrt(s) - 1) yes
:class:`SoftL1`   2 (sqrt(1 + s) - 1)   yes
:class:`Cauchy`   log(1 + s)            no
:class:`Arctan`   arctan(s)             no
================= ===================== ==============

With u = r / C and f(u) = rho(u^2) / 2 the slope is C f' and the second derivative f'', which is zero or negative for
outliers. What is used for it is

    max(f'', f' / 10 u) > 0,

so that J^T H_L J stays positive semi-definite for all four, and every residual keeps a part in it: f' / u alone would
be iteratively reweighted least squares, which is safe and slow (Triggs et al., 2000). Where powers of u could overflow,
f is its expansion at infinity.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any, ClassVar

from ...protocols import Array
from ...records import record
from .base import Elementwise
from .weighting import number

__all__ = ["Arctan", "Cauchy", "Huber", "Robust", "SoftL1"]


@record
class Robust(Elementwise):
    """C^2 f((z - y) / C) for each output; targets None stand for zeros.

    A subclass has :meth:`parts`.

    Parameters
    ----------
    width : float
        The positive C, in units of the outputs: residuals beyond it are outliers.
    """

    targets_optional: ClassVar[bool] = True
    second_derivative: ClassVar[bool] = False
    limits = MappingProxyType({"width": ("be positive and finite", lambda c: 0 < c < math.inf)})

    width: float | Array = 1.0

    def parts(self, xp: Any, u: Array) -> tuple[Array, Array, Array]:
        """f, f' / u, which is even, and f'' at u; f can be differentiated twice."""
        raise NotImplementedError(f"{type(self).__name__} does not define parts")

    def _at(self, xp: Any, z: Array, y: Array | None) -> tuple[Array, Array, tuple[Array, Array, Array]]:
        c, r = number(xp, self.width, z), z if y is None else z - y
        return c, r, self.parts(xp, r / c)

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        c, _, (f, _, _) = self._at(xp, z, y)
        return c * (c * f)

    def slope(self, xp: Any, z: Array, y: Array) -> Array:
        _, r, (_, weight, _) = self._at(xp, z, y)
        return weight * r

    def curvature(self, xp: Any, z: Array, y: Array) -> Any:
        _, _, (_, weight, bent) = self._at(xp, z, y)
        return xp.where(bent > 0.1 * weight, bent, 0.1 * weight)


def _near(xp: Any, u: Array, bound: Any) -> tuple[Array, Array, Array]:
    """Where |u| is at most ``bound``, the square of u there, and |u| elsewhere."""
    near, one = abs(u) <= bound, xp.ones_like(u)
    return near, xp.where(near, u, 0 * one) ** 2, xp.where(near, one, abs(u))


def _root_of_precision(xp: Any, u: Array, n: int) -> float:
    """eps^(-1/n): beyond it u^-n is lost beside 1."""
    return math.pow(float(xp.finfo(u.dtype).eps), -1 / n)


@record
class Huber(Robust):
    """Squares up to C, linear beyond.

    >>> import numpy as np
    >>> Huber(width=2.0).gradient(np, np.array([1.0, 5.0]), None, None)
    array([1., 2.])
    """

    name: ClassVar[str] = "Huber"

    def parts(self, xp: Any, u: Array) -> tuple[Array, Array, Array]:
        near, square, far = _near(xp, u, 1.0)
        return (
            xp.where(near, 0.5 * square, far - 0.5),
            1.0 / far,
            xp.where(near, xp.ones_like(u), xp.zeros_like(u)),
        )


@record
class SoftL1(Robust):
    """A smooth Huber loss.

    >>> import numpy as np
    >>> SoftL1().gradient(np, np.array([0.0, 1.0]), None, None).round(4)
    array([0.    , 0.7071])
    """

    name: ClassVar[str] = "soft L1"

    def parts(self, xp: Any, u: Array) -> tuple[Array, Array, Array]:
        near, square, far = _near(xp, u, 4.0 * _root_of_precision(xp, u, 2))
        root = xp.sqrt(1.0 + square)
        weight = xp.where(near, 1.0 / root, 1.0 / far)
        return xp.where(near, square / (root + 1.0), far - 1.0 + 0.5 / far), weight, weight**3


@record
class Cauchy(Robust):
    """Of a heavy-tailed distribution: outliers lose their pull.

    >>> import numpy as np
    >>> Cauchy().gradient(np, np.array([1.0, 9.0]), None, None).round(4)
    array([0.5   , 0.1098])
    """

    name: ClassVar[str] = "Cauchy"

    def parts(self, xp: Any, u: Array) -> tuple[Array, Array, Array]:
        near, square, far = _near(xp, u, 4.0 * _root_of_precision(xp, u, 2))
        weight = xp.where(near, 1.0 / (1.0 + square), (1.0 / far) ** 2)
        f = xp.where(near, 0.5 * xp.log1p(square), xp.log(far) + 0.5 * (1.0 / far) ** 2)
        return f, weight, weight * (2.0 * weight - 1.0)


@record
class Arctan(Robust):
    """Bounded: a residual costs at most pi C^2 / 4.

    >>> import numpy as np
    >>> Arctan().gradient(np, np.array([1.0, 3.0]), None, None).round(4)
    array([0.5   , 0.0366])
    """

    name: ClassVar[str] = "arctan"

    def parts(self, xp: Any, u: Array) -> tuple[Array, Array, Array]:
        near, square, far = _near(xp, u, 4.0 * _root_of_precision(xp, u, 6))
        weight = xp.where(near, 1.0 / (1.0 + square**2), (1.0 / far) ** 4)
        f = xp.where(near, 0.5 * xp.atan(square), 0.25 * math.pi - 0.5 * (1.0 / far) ** 2)
        return f, weight, weight * (4.0 * weight - 3.0)
