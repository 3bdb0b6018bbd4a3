"""An operator of any framework as one of NumPy's: vectors are sent to its device for a product, and fetched back.

What keeps many vectors, and takes few products, runs on the host then, where there is more memory: ``eigsh`` with
``basis_on="host"``. For a product one vector crosses and one comes back. The basis never crosses: vectors are
orthogonalised on the host.

A solver's loop is a Python loop then, with a product at a time; a compiled program has no host to keep vectors on.
"""

from __future__ import annotations

import numpy as np

from ..operators.base import LinearOperator, run
from ..protocols import Vector
from ..records import record, static
from ..spaces import Space

__all__ = ["OnHost", "on_host"]


@record
class OnHost(LinearOperator):
    """A, for NumPy vectors; made by :func:`on_host`."""

    operator: LinearOperator
    domain: Space = static(default=None)
    codomain: Space = static(default=None)

    @property
    def symmetric(self) -> bool:
        return self.operator.symmetric

    @property
    def psd(self) -> bool:
        return self.operator.psd

    @property
    def host(self) -> bool:
        return True

    def prepare(self) -> OnHost:
        """With the operator prepared on its device."""
        return OnHost(self.operator.prepare(), self.domain, self.codomain)

    def matvec(self, v: Vector) -> Vector:
        A = self.operator
        return _fetched(A.codomain, run(LinearOperator.apply, A, _sent(A.domain, v)))

    def rmatvec(self, u: Vector) -> Vector:
        A = self.operator
        return _fetched(A.domain, run(LinearOperator.rapply, A, _sent(A.codomain, u)))


def _sent(space: Space, v: Vector) -> Vector:
    return space.from_order(v, space.dtype)


def _fetched(space: Space, w: Vector) -> Vector:
    """In memory of its own."""
    return np.array(space.in_order(w))


def on_host(door: str, A: LinearOperator) -> OnHost:
    """A, for NumPy vectors.

    Raises
    ------
    TypeError
        Inside of a compiled program, or for a dtype that NumPy has not.
    """
    ops, space = A.backend, A.domain
    if not ops.is_concrete((A, ops.asarray(np.zeros(1), space.dtype, space.device))):
        raise TypeError(
            f'{door}: inside of a compiled program there is no host to keep vectors on. Leave out basis_on="host", or '
            "call it outside of jit; its products are compiled there all the same."
        )
    if not hasattr(np, space.dtype):
        raise TypeError(f'{door}: NumPy has no {space.dtype}; cast the operator, or leave out basis_on="host".')
    like = np.zeros(1, space.dtype)
    return OnHost(A, Space.flat(space.size, like), Space.flat(A.codomain.size, like))
