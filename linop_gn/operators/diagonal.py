"""diag(d), with d a flat array or a tree."""

from __future__ import annotations

from typing import Any

from ..dispatch import backend_of
from ..protocols import Scalar, Vector
from ..records import fill, record, static
from ..spaces import Space
from .base import LinearOperator
from .checks import nonnegative, values_of
from .norms import norm_of

__all__ = ["Diagonal"]


@record
class Diagonal(LinearOperator):
    """Multiplication by one number for each entry.

    Parameters
    ----------
    values
        The diagonal: a flat array (n,), or a tree whose shape is then that of
        the vectors. A tree is stored as one flat array; a flat one is not copied.
    psd
        Whether no value is negative. Left out, it is found from the values
        where they can be read, and counts as unknown in a trace.
    domain
        The space of the vectors, for flat values that act on a tree.

    Raises
    ------
    ValueError
        For NaN or infinite values, or a negative value where ``psd=True``.
    TypeError
        For values that are not real floating-point arrays.

    Examples
    --------
    >>> import numpy as np, linop_gn as lg
    >>> D = lg.Diagonal({"bias": np.array([2.0]), "weight": np.array([[1.0, 3.0]])})
    >>> D
    Diagonal(3 x 3, psd, numpy float64)
    >>> D @ {"bias": np.array([1.0]), "weight": np.array([[1.0, 1.0]])}
    {'bias': array([2.]), 'weight': array([[1., 3.]])}
    """

    values: Any
    psd: bool = static(default=None)
    domain: Space = static(default=None)

    def __post_init__(self) -> None:
        given: Any = self.domain
        claimed: Any = self.psd
        domain = Space.of(self.values, "diagonal") if given is None else given
        backend = domain.backend
        owner = backend_of(self.values)
        if owner is not backend:
            raise TypeError(
                f"the domain belongs to {backend.name} but the diagonal to {owner.name}; convert one of them."
            )
        values, _ = domain.enter(self.values, "diagonal")
        if len(values.shape) != 1:
            raise ValueError(f"the diagonal has shape {tuple(values.shape)}; expected ({domain.size},).")
        host = values_of(backend, values, "the diagonal")
        known = host is not None and nonnegative(host, claimed, "the diagonal")
        fill(self, values=values, domain=domain, psd=known if claimed is None else bool(claimed))

    @property
    def symmetric(self) -> bool:
        return True

    def matvec(self, v: Vector) -> Vector:
        return self.values * v

    def matmat(self, v: Vector) -> Vector:
        return self.values[:, None] * v

    def known_diagonal(self) -> Vector | None:
        return self.backend.copy(self.values)

    def known_frobenius_norm(self) -> Scalar | None:
        return norm_of(self.backend, self.values)
