"""The contract between the toolkit and an array framework.

``linop_gn`` itself imports no framework. Everything it needs of one is named
here, in four groups that a :class:`Backend` brings together:

=============== ============================================================
:class:`Arrays`      recognise, flatten, pack and convert arrays and trees
:class:`Arithmetic`  the few vector and scalar operations a solver is made of
:class:`Loops`       call, advance and iterate pure functions
:class:`Calculus`    linearise a function (optional: NumPy and CuPy have none)
=============== ============================================================

**Scalars belong to the backend.** ``dot`` returns a Python float where work is
done eagerly, a traced 0-d array in JAX, and an array ``(k,)`` for ``k`` columns.
Solver code therefore never writes ``if``, ``and`` or ``not`` on a scalar: it
asks :meth:`Arithmetic.where`, ``&``, ``|`` and :meth:`Arithmetic.logical_not`.

**Vector updates consume their last argument.** After ``z = ops.axpy(a, x, y)``
the array ``y`` must not be read again: eager backends have overwritten it.
All other arguments are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

__all__ = [
    "Arithmetic",
    "Array",
    "Arrays",
    "Backend",
    "Calculus",
    "Carry",
    "GradientLinearization",
    "Linearization",
    "Loops",
    "Method",
    "Scalar",
    "Tree",
    "Vector",
]

Array: TypeAlias = Any
"""An array of whichever framework."""
Vector: TypeAlias = Any
"""A flat array ``(n,)``, or ``(n, k)`` for ``k`` columns."""
Scalar: TypeAlias = Any
"""Python number, 0-d array, or array ``(k,)``: one number for each column."""
Tree: TypeAlias = Any
"""Nested containers of arrays, as the framework defines them."""

R = TypeVar("R")


class Arrays(Protocol):
    """Recognising, flattening and converting arrays and trees of arrays."""

    name: str

    def namespace(self) -> Any:
        """The array-API namespace (``numpy``, ``jax.numpy``, a compat module for torch)."""
        ...

    def is_array(self, x: Any) -> bool:
        """Whether ``x`` is an array of this framework."""
        ...

    def is_concrete(self, tree: Any) -> bool:
        """False while a compiler is tracing, when values cannot be read."""
        ...

    def normalize(self, tree: Any) -> Tree:
        """Turn a container that the tree functions don't know into one they do.

        An ``nn.Module`` becomes the dict of its trainable parameters; most
        things are returned as they are.
        """
        ...

    def flatten(self, tree: Tree) -> tuple[list[str], list[Array], Hashable]:
        """Leaf names (path parts joined by dots), leaves, and the tree's structure."""
        ...

    def unflatten(self, structure: Hashable, leaves: Sequence[Any]) -> Tree:
        """The inverse of :meth:`flatten`; the leaves may be anything."""
        ...

    def describe(self, x: Array) -> tuple[tuple[int, ...], str, Hashable]:
        """Shape, dtype name (``"float32"``) and device (None where it is not fixed, as in a trace)."""
        ...

    def pack(self, leaves: Sequence[Array], dtype: str) -> Vector:
        """A *new* flat array (n,) of all leaves in order (never an alias of a single leaf).

        Differentiable where the framework has derivatives.
        """
        ...

    def split(self, vector: Vector, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> list[Array]:
        """Cut (n,) into leaves (views where the framework has them); (n, k) into leaves of shape ``(*shape, k)``."""
        ...

    def asarray(self, host: Any, dtype: str, device: Hashable = None) -> Array:
        """An array of this framework from NumPy data or a Python number."""
        ...

    def cast(self, x: Array, dtype: str) -> Array:
        """``x`` in another floating dtype."""
        ...

    def to_numpy(self, x: Array) -> Any:
        """A NumPy array (detached, on the host)."""
        ...

    def detach(self, tree: Tree) -> Tree:
        """The same values, cut from any graph that the user is recording."""
        ...


class Arithmetic(Protocol):
    """What a solver is made of. Vectors are ``(n,)`` or ``(n, k)``; the last argument is consumed where noted."""

    def dot(self, x: Vector, y: Vector) -> Scalar:
        """Sum of products, a column at a time, accumulated safely for large n in float32."""
        ...

    def max_abs(self, x: Vector) -> Scalar:
        """Largest absolute entry (NaN or infinity if there is one)."""
        ...

    def copy(self, x: Vector) -> Vector:
        """A new array."""
        ...

    def zeros_like(self, x: Vector) -> Vector: ...

    def scale(self, a: Scalar, x: Vector) -> Vector:
        """``a x``; consumes x."""
        ...

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        """``a x + y``; consumes y."""
        ...

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        """``a x + b y``; consumes y."""
        ...

    def subtract(self, x: Vector, y: Vector) -> Vector:
        """``x - y``; consumes y."""
        ...

    def select(self, condition: Scalar, x: Vector, y: Vector) -> Vector:
        """``x`` where the condition holds (of the whole vector, or of each column), else ``y``. May alias either."""
        ...

    def mask(self, condition: Scalar, x: Vector) -> Vector:
        """``x`` where the condition holds, else exact zeros, whatever ``x`` holds. May alias x, never writes to it."""
        ...

    def branch(
        self, condition: Scalar, then: Callable[..., R], otherwise: Callable[..., R], *operands: Any
    ) -> R:
        """``then(*operands)`` or ``otherwise(*operands)``: only one is run where the condition is one scalar.

        Both return tuples of vectors and scalars of the same structure. Either may consume its
        operands: where both have to be run (columns that differ), the backend gives one of them copies.
        """
        ...

    def scalar(self, value: Any, like: Vector) -> Scalar:
        """A scalar, repeated for each column of ``like`` where it has columns."""
        ...

    def item(self, x: Array) -> Scalar:
        """A 0-d array as a scalar of this backend: a Python float where work is eager, itself otherwise."""
        ...

    def where(self, condition: Scalar, x: Scalar, y: Scalar) -> Scalar: ...

    def divide(self, x: Scalar, y: Scalar) -> Scalar:
        """``x / y``, and 0 where y is 0: never an exception."""
        ...

    def sqrt(self, x: Scalar) -> Scalar:
        """Square root; NaN (never an exception) for negative numbers."""
        ...

    def minimum(self, x: Scalar, y: Scalar) -> Scalar: ...

    def maximum(self, x: Scalar, y: Scalar) -> Scalar: ...

    def isfinite(self, x: Scalar) -> Scalar: ...

    def logical_not(self, x: Scalar) -> Scalar: ...

    def any(self, x: Scalar) -> Scalar:
        """One truth value: whether any column's holds."""
        ...

    def power_of_two(self, x: Scalar, like: Vector) -> Scalar:
        """The power of two at or below ``|x|``, an exact scale for vectors of the dtype of ``like``.

        It and its inverse are normal numbers of that dtype; 1 for zero and non-finite x.
        """
        ...

    def eps(self, x: Vector) -> float:
        """Unit round-off spacing of the vector's dtype (a Python float)."""
        ...


class Carry(NamedTuple):
    """What a loop carries: the method's state and the rows observed so far."""

    state: Any
    rows: Any


class Loops(Protocol):
    """Calling pure functions over records: directly, or compiled once for each structure of their data.

    A row of the history belongs to a *step*, ``max(state.steps)``. A method may take
    a tick that counts no step (to verify a residual, say): the row is then written
    over the one of the same step, so that rows 0 .. steps are always what is kept.
    """

    def call(self, function: Callable[..., R], *records: Any) -> R:
        """``function(*records)``; compiled where the framework compiles, keyed by ``function``'s identity."""
        ...

    def begin(self, method: Method, problem: Any, capacity: int) -> Carry:
        """The initial carry, with its first row; room for ``capacity`` further rows."""
        ...

    def advance(self, method: Method, problem: Any, carry: Carry, steps: int) -> Carry:
        """At most ``steps`` further calls of ``method.step``, fewer if the method stops. Consumes the carry."""
        ...

    def run(self, method: Method, problem: Any, capacity: int) -> Carry:
        """Begin and advance until the method stops (however many ticks), unwatched, as one program where possible."""
        ...

    def iterate(self, method: Method, problem: Any) -> Any:
        """The final state of a sub-solver, run until it stops inside another method's step; no rows are kept."""
        ...

    def read(self, tree: Any) -> Any:
        """The tree with its arrays on the host as NumPy arrays or numbers, in one transfer."""
        ...

    def rows(self, carry: Carry, start: int, stop: int) -> Any:
        """Rows ``start .. stop`` as a host array (rows, fields[, k])."""
        ...

    def sum_over(self, function: Callable[..., R], stacked: Any, *shared: Any) -> R:
        """The sum over leading index i of ``function(stacked[i], *shared)``, whose result is a tree of arrays."""
        ...

    def over_columns(self, function: Callable[[Vector], Vector], columns: Vector) -> Vector:
        """``function`` of each column (n,) of (n, k), results side by side (m, k); one copy of it in a trace."""
        ...

    def scan_over(self, function: Callable[..., tuple[Any, Any]], stacked: Any, *shared: Any) -> tuple[Any, Any]:
        """Run ``function(stacked[i], *shared) -> (part, kept)`` over the leading index i, as one loop in a program.

        Returns the sum of the parts (a tree of arrays) and all that was kept, stacked along a new leading axis.
        """
        ...

    def describe_of(
        self, function: Callable[..., Array], *records: Any
    ) -> tuple[tuple[int, ...], str, Hashable]:
        """What :meth:`Arrays.describe` says of ``function(*records)``; not computed where the framework can tell."""
        ...


@runtime_checkable
class Linearization(Protocol):
    """A function of parameters, linearised once. All methods take and return *lists of leaves*.

    ``only`` restricts to some leaves, by index: then ``jvp`` takes tangents of
    those leaves alone (the others are zero), ``vjp`` returns cotangents of those
    alone, and no work is done for the rest.
    """

    outputs: Array
    """The function's value: one array."""
    gradient: list[Array] | None
    """J^T u for the cotangent u asked for at construction (the loss gradient, hence the name)."""

    def without_gradient(self) -> Linearization:
        """The same linearisation, not holding ``gradient`` (what is kept for products, one for each batch)."""
        ...

    def jvp(self, tangents: Sequence[Array], only: tuple[int, ...] | None = None) -> Array:
        """J v: an array like ``outputs``."""
        ...

    def vjp(self, cotangent: Array, only: tuple[int, ...] | None = None) -> list[Array]:
        """J^T u: leaves like the parameters (exact zeros where the function ignores one)."""
        ...


@runtime_checkable
class GradientLinearization(Protocol):
    """A scalar function's gradient, linearised once."""

    value: Array
    gradient: list[Array]

    def hvp(self, tangents: Sequence[Array]) -> list[Array]:
        """H v: leaves like the parameters (exact zeros where the gradient ignores one)."""
        ...


class Calculus(Protocol):
    """First and second derivatives of functions of a list of leaves."""

    def adapt(self, model: Any) -> Callable[[Tree, Any], Array]:
        """A plain function ``(params, inputs) -> outputs`` from what users have (an ``nn.Module``).

        Plain functions are returned as they are. The result is the same object
        for the same model, so that compiled code is found again.
        """
        ...

    def evaluate(self, function: Callable[[list[Array]], Any], params: Sequence[Array]) -> Any:
        """``function(list of params)`` without recording derivatives."""
        ...

    def linearize(
        self,
        function: Callable[[list[Array]], Array],
        params: Sequence[Array],
        cotangent: Callable[[Array], Array],
    ) -> Linearization:
        """Linearise ``function`` at ``params``; ``gradient`` is J^T applied to ``cotangent(outputs)``."""
        ...

    def linearize_gradient(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array]
    ) -> GradientLinearization:
        """Linearise the gradient of a scalar function at ``params``."""
        ...

    def gradient(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array]
    ) -> tuple[Array, list[Array]]:
        """Value and gradient of a scalar function, nothing kept."""
        ...

    def jacobian_rows(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array], rows: Sequence[int]
    ) -> list[list[Array]]:
        """Rows of the Jacobian of the flattened output by plain first-order reverse mode: the validator's oracle."""
        ...

    def hessian_rows(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array], rows: Sequence[int]
    ) -> list[list[Array]]:
        """Rows of the Hessian of a scalar function, over all its flattened parameters, by reverse over reverse mode.

        The validator's oracle: each row anew from the recorded gradient, whatever way the products take.
        """
        ...

    def as_double(self, model: Any) -> Any:
        """``model`` with the floating numbers that it holds itself in float64: a copy where it holds any.

        Plain functions are returned as they are: what they close over is out of reach.
        """
        ...

    def high_precision(self) -> Any:
        """A context manager inside which float64 can be used (JAX needs asking)."""
        ...

    def unsupported(self) -> Mapping[str, str]:
        """Known gaps, name to sentence, for the capability table."""
        ...


class Backend(Arrays, Arithmetic, Loops, Protocol):
    """One framework. Instances are singletons, hashable, found by :func:`linop_gn.backend_of`."""

    calculus: Calculus | None
    """None where the framework has no derivatives of its own."""
    capabilities: frozenset[str]
    """Of ``derivatives``, ``compiled``, ``in_place``, ``float64``, ``devices``, ``views``, ``trees``."""

    def version(self) -> str:
        """The framework's version."""
        ...

    def devices(self) -> list[str]:
        """Names of the devices that can be used now."""
        ...


class Method(Protocol):
    """An iterative method: pure functions over a state, without a loop.

    The state is a NamedTuple with at least ``status`` and ``steps``. A step is
    *total*: taken after the status is set, it changes nothing. No two leaves of
    an initial state share a buffer.
    """

    def init(self, ops: Backend, problem: Any) -> Any:
        """The state before the first step."""
        ...

    def step(self, ops: Backend, problem: Any, state: Any) -> Any:
        """The next state; consumes the given one."""
        ...

    def observe(self, state: Any) -> NamedTuple:
        """The row of scalars to keep for this state: its field names are the history's columns."""
        ...

    def answer(self, ops: Backend, problem: Any, state: Any) -> Any:
        """What the caller gets from the final state."""
        ...
