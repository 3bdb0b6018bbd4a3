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

The second derivative, rho' + 2 s rho'', is zero or negative for outliers. What is used for it is

    max(rho' + 2 s rho'', rho' / 10) > 0,

so that J^T H_L J stays positive semi-definite for all four, and every residual keeps a part in it: the second term
alone, rho', would be iteratively reweighted least squares, which is safe and slow (Triggs et al., 2000).
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
    """C^2 rho((z - y)^2 / C^2) / 2 for each output; targets None stand for zeros.

    A subclass has :meth:`rho`.

    Parameters
    ----------
    width : float
        The positive C, in units of the outputs: residuals beyond it are outliers.
    """

    targets_optional: ClassVar[bool] = True
    limits = MappingProxyType({"width": ("be positive and finite", lambda c: 0 < c < math.inf)})

    width: float | Array = 1.0

    def rho(self, xp: Any, s: Array) -> tuple[Array, Array, Array]:
        """rho, its derivative, and its second derivative at s >= 0."""
        raise NotImplementedError(f"{type(self).__name__} does not define rho")

    def _at(self, xp: Any, z: Array, y: Array | None) -> tuple[Array, Array, tuple[Array, Array, Array]]:
        c, r = number(xp, self.width, z), z if y is None else z - y
        s = (r / c) ** 2
        return r, s, self.rho(xp, s)

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        c = number(xp, self.width, z)
        return 0.5 * c * c * self._at(xp, z, y)[2][0]

    def slope(self, xp: Any, z: Array, y: Array) -> Array:
        r, _, (_, first, _) = self._at(xp, z, y)
        return first * r

    def curvature(self, xp: Any, z: Array, y: Array) -> Any:
        _, s, (_, first, second) = self._at(xp, z, y)
        bent, least = first + 2.0 * s * second, 0.1 * first
        return xp.where(bent > least, bent, least)


@record
class Huber(Robust):
    """Squares up to C, linear beyond.

    >>> import numpy as np
    >>> Huber(width=2.0).gradient(np, np.array([1.0, 5.0]), None, None)
    array([1., 2.])
    """

    name: ClassVar[str] = "Huber"

    def rho(self, xp: Any, s: Array) -> tuple[Array, Array, Array]:
        inside, one = s <= 1, xp.ones_like(s)
        root = xp.sqrt(xp.where(inside, one, s))
        return (
            xp.where(inside, s, 2.0 * root - 1.0),
            1.0 / root,
            xp.where(inside, xp.zeros_like(s), -0.5 / root**3),
        )


@record
class SoftL1(Robust):
    """A smooth Huber loss.

    >>> import numpy as np
    >>> SoftL1().gradient(np, np.array([0.0, 1.0]), None, None).round(4)
    array([0.    , 0.7071])
    """

    name: ClassVar[str] = "soft L1"

    def rho(self, xp: Any, s: Array) -> tuple[Array, Array, Array]:
        root = xp.sqrt(1.0 + s)
        return 2.0 * s / (root + 1.0), 1.0 / root, -0.5 / root**3


@record
class Cauchy(Robust):
    """Of a heavy-tailed distribution: outliers lose their pull.

    >>> import numpy as np
    >>> Cauchy().gradient(np, np.array([1.0, 9.0]), None, None).round(4)
    array([0.5   , 0.1098])
    """

    name: ClassVar[str] = "Cauchy"

    def rho(self, xp: Any, s: Array) -> tuple[Array, Array, Array]:
        first = 1.0 / (1.0 + s)
        return xp.log1p(s), first, -(first**2)


@record
class Arctan(Robust):
    """Bounded: a residual costs at most pi C^2 / 4.

    >>> import numpy as np
    >>> Arctan().gradient(np, np.array([1.0, 3.0]), None, None).round(4)
    array([0.5   , 0.0366])
    """

    name: ClassVar[str] = "arctan"

    def rho(self, xp: Any, s: Array) -> tuple[Array, Array, Array]:
        first = 1.0 / (1.0 + s * s)
        return xp.atan(s), first, -2.0 * s * first**2
