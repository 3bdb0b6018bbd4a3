"""What a backend, its calculus and its linearisations are unless they say otherwise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from ..dispatch import load
from ..protocols import Array, Calculus, Product, Scalar, Tree, Uses

__all__ = ["BackendDefaults", "CalculusDefaults", "LinearizationDefaults"]

R = TypeVar("R")
T = TypeVar("T")
L = TypeVar("L", bound="LinearizationDefaults")


_OPEN = nullcontext()


class BackendDefaults:
    """Found by its name, without derivatives; arrays belong to no record, and work is done when it is asked for."""

    name: str
    calculus: Calculus | None = None

    def __repr__(self) -> str:
        return f"<linop_gn backend {self.name!r}>"

    def __reduce__(self) -> Any:
        return load, (self.name,)  # copied and pickled by name: there is one instance

    def normalize(self, tree: Any) -> Tree:
        return tree

    def detach(self, tree: Tree) -> Tree:
        return tree

    def largest(self, x: Array) -> Array:
        ops: Any = self
        return ops.namespace().max(x, axis=-1, keepdims=True)

    def wait(self, tree: Tree) -> Tree:
        return tree

    def all_finite(self, x: Array | tuple[Array, ...]) -> bool:
        if isinstance(x, tuple):
            return all(map(self.all_finite, x))
        ops: Any = self
        flat = x if len(x.shape) == 1 else ops.namespace().reshape(x, (-1,))
        return math.isfinite(ops.read(ops.max_abs(flat)))

    def lying(self, leaves: Sequence[Array], dtype: str) -> Array | None:
        return None

    def laid(self, pieces: Sequence[Array | Product]) -> Array:
        xp = self.namespace()  # type: ignore[attr-defined]
        flat = [xp.reshape(xp.matmul(*x), (-1,)) if isinstance(x, Product) else x for x in pieces]
        return flat[0] if len(flat) == 1 and isinstance(pieces[0], Product) else xp.concat(flat)

    def same(self, x: Array, y: Array) -> bool:
        ops: Any = self
        return bool(ops.read(ops.namespace().all(x == y)))

    def layout(self, leaves: Sequence[Any], names: Sequence[str] = ()) -> Any:
        return None

    def spread(self, layout: Any, part: Array) -> Array:
        return part

    def agreed(self, layout: Any, number: Array) -> Array:
        return number

    def gathered(self, matrix: Array) -> Array:
        return matrix

    def syrk(self, x: Array) -> Array:
        xp = self.namespace()  # type: ignore[attr-defined]
        return xp.matmul(x, x.T)  # NumPy knows what that is

    def qr(self, columns: Array) -> tuple[Array, Array]:
        Q, R = self.namespace().linalg.qr(columns)  # type: ignore[attr-defined]
        return Q, R

    def dots(self, *pairs: tuple[Array, Array]) -> tuple[Scalar, ...]:
        ops: Any = self
        return tuple(ops.dot(x, y) for x, y in pairs)

    def either(self, condition: Scalar, then: Callable[..., R], otherwise: Callable[..., R], *operands: Any) -> R:
        ops: Any = self
        chosen: R = ops.branch(condition, then, otherwise, *operands)
        return chosen

    def unguarded(self) -> AbstractContextManager[None]:
        return _OPEN

    def alone(self, make: Callable[[], R]) -> tuple[R, bool]:
        return make(), False

    def generators(self) -> Sequence[Any]:
        return ()

    def operator_of(self, obj: Any, like: Array | None, symmetric: bool | None, psd: bool) -> Any:
        return None

    def loss_of(self, obj: Any) -> Any:
        return None

    def load_into(self, holder: Any, params: Tree) -> Any:
        raise TypeError(
            f"load_into writes over the parameters of a module, and {self.name} has no modules to write into (got "
            f"{type(holder).__qualname__}): go on with result.params."
        )

    def processes(self, group: Any, model: Any) -> tuple[Any, Any]:
        raise TypeError(
            f"lg.distributed.DataParallel: {self.name} has no groups of processes. Give the objective a function that "
            "sums a flat array over them, lg.Objective(..., reduce=all_reduce), as docs/many_devices.md shows for "
            "mpi4py."
        )

    def apart(self, x: T, reduction: Any) -> T:
        return x


class CalculusDefaults:
    """Models are plain functions, whose dtypes follow the arrays that they are given."""

    def adapt(self, model: Any, names: Sequence[str] | None = None) -> Callable[..., Any]:
        return model  # type: ignore[no-any-return]

    def evaluate(self, function: Callable[[list[Array]], Any], params: Sequence[Array]) -> Any:
        return function(list(params))

    def linearize_once(
        self,
        function: Callable[[list[Array]], Array],
        params: Sequence[Array],
        cotangent: Callable[[Array], Array],
        model: Any,
    ) -> Any:
        return self.linearize(function, params, cotangent)  # type: ignore[attr-defined]

    def uses(self, function: Callable[[list[Array]], Array], params: Sequence[Array]) -> Any:
        raise NotImplementedError(
            "this framework does not tell which operations parameters enter, as Kronecker factors need: write the "
            "model in torch or JAX (lg.Objective(..., derivatives=) differentiates it there), or take lg.BlockGGN."
        )

    def coupling(self, model: Any) -> str | None:
        return None

    def compiled(self) -> Any:
        return None

    def as_double(self, model: Any) -> Any:
        return model

    def high_precision(self) -> AbstractContextManager[Any]:
        return nullcontext()


class LinearizationDefaults:
    """A linearisation with its ``gradient`` beside what products need. Deep copies share it, no pickle holds it."""

    gradient: list[Array] | None
    fresh: bool = False
    seed: Any = None

    def __copy__(self: L) -> L:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self: L, memo: Any) -> L:
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "what was linearised cannot be pickled: pickle the operator as it was made, lg.GGN(objective, params), or "
            "the parameters; runs are kept by lg.save_state, and their results are pickled without it."
        )

    def without_gradient(self: L) -> L:
        bare = copy.copy(self)
        bare.gradient = None
        return bare

    def pull(self, cotangent: Array, only: tuple[int, ...] | None = None) -> list[Array]:
        return self.vjp(cotangent, only)  # type: ignore[attr-defined,no-any-return]

    def owns(self, leaves: Sequence[Array]) -> bool:
        """See :meth:`linop_gn.protocols.Linearization.owns`."""
        return False

    def uses(self) -> Uses | None:
        """See :meth:`linop_gn.protocols.Linearization.uses`."""
        return None
