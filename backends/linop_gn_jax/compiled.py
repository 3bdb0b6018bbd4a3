"""Compiled programs: one for each function and structure of data, counted.

``jax.jit`` finds a program again by the identity of the function, so the
wrapper of each function is made once. While somebody else's trace is
going on the function is called as it is and becomes part of that program.

jaxlib 0.10.2 miscompiles some loops on the CPU with its default fusions from
the YNN library: numbers that are wrong, and different on each call. Programs
made here are compiled without these fusions on that version. A program that
the user compiles is not ours to change, hence the warning.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jaxlib
from jax import lax
from jax.extend import core

__all__ = ["EFFORTS", "advised", "all_unguarded", "at_rest", "can_be_quick", "compilations", "compiled"]
__all__ += ["tracing", "unguarded"]

R = TypeVar("R")
T = TypeVar("T")

_counts: Counter[str] = Counter()
_ours: ContextVar[bool] = ContextVar("ours", default=False)  # whether the program being traced is one made here

_YNN_OPTION = "xla_cpu_experimental_ynn_fusion_type"
_LESS = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_backend_optimization_level": 1,
}
EFFORTS: dict[str, dict[str, Any]] = {
    "full": {},
    "less": _LESS,
    "least": {
        **_LESS,
        "xla_backend_optimization_level": 0,
        "xla_disable_hlo_passes": "while-loop-invariant-code-motion,simplify-while-loops",
    },
}
"""What to ask of XLA on the CPU: for less its older code; for the least no optimisations of LLVM, and not the two
passes that look for what stays the same in a loop, which take a third of the rest."""

_YNN_IS_WRONG = jaxlib.__version__ == "0.10.2"


# The direct question costs 1 microsecond; where JAX doesn't answer it, an operation tells, at 30.
_asked: Callable[[], bool] | None = getattr(core, "unsafe_am_i_under_a_jit_DO_NOT_USE", None)

_state: Callable[..., Any] | None = getattr(core, "get_opaque_trace_state", None)


@functools.cache
def _state_at_rest() -> Any:
    with jax.core.eval_context():
        return _state(convention="linop_gn") if _state is not None else None


def at_rest() -> bool:
    """Whether nothing is known to be traced or transformed: at 1 microsecond; looking at all arguments takes 15."""
    return _state is not None and _state(convention="linop_gn") == _state_at_rest()


def _transforming(arguments: Any) -> bool:
    """Whether the user's grad, jvp or vmap is following these arguments, outside any jit."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments))


def tracing() -> bool:
    """Whether operations are becoming part of somebody's program right now."""
    if at_rest():
        return False
    return _asked() if _asked is not None else isinstance(lax.full((), 0), jax.core.Tracer)


def _strict() -> bool:
    """Whether the user's JAX refuses what programs here do: broadcasting to more axes, numbers of the host."""
    config = jax.config
    return (
        config.jax_numpy_rank_promotion != "allow"
        or config.jax_transfer_guard_host_to_device not in _ALLOWED
        or config.jax_transfer_guard_device_to_host not in _ALLOWED
    )


_ALLOWED = (None, "allow", "log", "log_explicit")


@contextmanager
def unguarded() -> Iterator[None]:
    """The user's ``numpy_rank_promotion`` and ``transfer_guard`` watch what the user writes, not what is done here."""
    if not _strict():
        yield
        return
    with jax.numpy_rank_promotion("allow"), jax.transfer_guard("allow"):
        yield


def _within(function: Callable[..., R]) -> Callable[..., R]:
    @functools.wraps(function)
    def method(*arguments: Any, **named: Any) -> R:
        if not _strict():
            return function(*arguments, **named)
        with unguarded():
            return function(*arguments, **named)

    return method


_ASIDE = {"describe", "eps", "flatten", "is_array", "is_concrete", "namespace", "unflatten"}
"""Methods that make no arrays, and are called most."""


def all_unguarded(kind: type[T]) -> type[T]:
    """The class, with all its public methods that make arrays in :func:`unguarded`."""
    for name in dir(kind):
        member = inspect.getattr_static(kind, name)
        if inspect.isfunction(member) and not name.startswith("_") and name not in _ASIDE:
            setattr(kind, name, _within(member))
    return kind


def compilations() -> dict[str, int]:
    """How often each function was traced, by name, since the process began.

    A solve that is repeated with other numbers of the same shapes, dtypes and
    structure leaves every count as it is.
    """
    return dict(_counts)


def compiled(
    function: Callable[..., R],
    *,
    label: Callable[..., str] | None = None,
    static: tuple[int, ...] = (),
    donate: tuple[int, ...] = (),
    loops: bool = False,
    effort: str = "full",
) -> Callable[..., R]:
    """``function`` in ``jax.jit``, or as it is inside another trace.

    ``label(*arguments)`` names it in :func:`compilations`; ``static`` and
    ``donate`` are positions of arguments; ``loops`` tells that it holds a loop; ``effort``, of :data:`EFFORTS`,
    what compiling it is worth.
    """

    @functools.wraps(function)
    def traced(*arguments: Any) -> R:
        _counts[label(*arguments) if label else getattr(function, "__qualname__", repr(function))] += 1
        token = _ours.set(True)
        try:
            with advised():
                return function(*arguments)
        finally:
            _ours.reset(token)

    options: dict[str, Any] | None = {_YNN_OPTION: ""} if _YNN_IS_WRONG else None
    options = {**(options or {}), **EFFORTS[effort]} or None
    program = jax.jit(traced, static_argnums=static, donate_argnums=donate, compiler_options=options)
    nested = jax.jit(traced, static_argnums=static)

    @functools.wraps(function)
    def enter(*arguments: Any) -> R:
        rest = at_rest()
        if not rest and tracing():
            if loops and not _ours.get():
                _warn_of_wrong_fusions()
            with advised():
                return function(*arguments)
        if rest or options is None or not _transforming(arguments):
            try:
                return program(*arguments)
            except ValueError as error:  # what the function closes over is transformed
                if options is None or "compiler_options" not in str(error):
                    _refuse_scattered(error)
                    raise
            except TypeError as error:
                _refuse_foreign(error)
                raise
        if loops:
            _warn_of_wrong_fusions()
        return nested(*arguments)  # what is transformed may be traced later, and options cannot be nested

    enter.program = program  # type: ignore[attr-defined]
    return enter


_HOUSE = {"linop_gn", "linop_gn_jax", "jax", "jaxlib", "numpy", *sys.stdlib_module_names} - {"__main__"}


_FOREIGN = re.compile(r"problematic value is of type <class '([\w.]+)'> .* at path ([\w.\[\]']+?)\.?\s", re.DOTALL)


def _refuse_foreign(error: TypeError) -> None:
    """Raise in our words what JAX says of another framework's array."""
    if found := _FOREIGN.search(str(error)):
        kind, path = found.groups()
        told = f"{path} is a {kind}, and a program of JAX takes none; convert it: jax.numpy.asarray(x)."
        raise TypeError(told) from error


_SCATTERED = re.compile(r"argument (\S+) of \S+ with shape (\S+?) and with device ids (\[[\d, ]+\])", re.DOTALL)
_TOLD = {
    r".*batches\[(\d+)\]\.": r"batch \1: ",
    r".*point\.where\[(\d+)\]": r"leaf \1 of the parameters",
    r"\w+\[(\d+)\]": r"leaf \1 of the vector",
    r".*\bpieces\[.*": "the operator",
    r"(problem\.)?(rhs|v|u)$": "the vector",
    r"problem\.start$": "the parameters",
    r"(method\.)?(carry|own|state)\b.*": "the state of the run",
}


def _refuse_scattered(error: ValueError) -> None:
    """Raise in our words what JAX says of arrays on different devices."""
    if "incompatible devices" not in str(error) or len(found := _SCATTERED.findall(str(error))) != 2:
        return
    (first, here, some), (second, there, others) = ((_told_of(name), *rest) for name, *rest in found)
    told = (
        f"arrays lie on different devices: {first} ({here}) on {some}, {second} ({there}) on {others}. Put parameters "
        "and data on one mesh, jax.device_put(x, NamedSharding(mesh, PartitionSpec(...))); whole on each of its "
        "devices is PartitionSpec(). A run goes on on other devices from its file (checkpoint=, lg.save_state)."
    )
    raise ValueError(told) from error


def _told_of(argument: str) -> str:
    for pattern, words in _TOLD.items():
        if re.match(pattern, argument):
            return re.sub(pattern, words, argument, count=1)
    return argument


_ADVICE = (
    "asks for a value where JAX compiles it and none is known yet. Write ops.where(condition, a, b) in place of if, "
    "and &, |, ops.logical_not(a) in place of and, or, not; in a model or loss jax.numpy.where."
)


_MAPPED = (
    "Inside of shard_map, an objective of a device's own rows leads to steps and parameters that are its own. If all "
    "devices are to take the same steps, sum the objective: lg.distributed.DataParallel(objective, axis). For a run of "
    "each device's own, hand in parameters that may differ: jax.lax.pcast(params, axis, to='varying')."
)


@contextmanager
def advised() -> Iterator[None]:
    """An error that comes of a value that is not known yet, of another framework or of a map says what to write."""
    try:
        yield
    except jax.errors.ConcretizationTypeError as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        theirs = [frame for frame in frames if frame.f_globals.get("__name__", "").partition(".")[0] not in _HOUSE]
        if theirs and not any(_ADVICE in note for note in getattr(error, "__notes__", ())):
            error.add_note(f"{theirs[-1].f_code.co_qualname} {_ADVICE}")
        raise
    except TypeError as error:
        _refuse_foreign(error)
        raise
    except ValueError as error:
        if "invariant->variant" in str(error) and _MAPPED not in getattr(error, "__notes__", ()):
            error.add_note(_MAPPED)
        raise


@functools.cache
def can_be_quick() -> bool:
    """Whether there is a compiler for the CPU here that takes its older and quicker ways on request."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=EFFORTS["least"]).lower().compile()
    except Exception:  # XLA of another version, whose words for an unknown option are its own
        return False
    return True


@functools.cache
def _warn_of_wrong_fusions() -> None:
    if _YNN_IS_WRONG and _YNN_OPTION not in os.environ.get("XLA_FLAGS", "") and jax.default_backend() == "cpu":
        warnings.warn(
            "jaxlib 0.10.2 miscompiles some loops on the CPU (wrong numbers, different on each call), and this one is "
            f"part of a program compiled by your own jax.jit: set XLA_FLAGS=--{_YNN_OPTION}= before the first use of "
            "JAX, or use another version of jaxlib.",
            RuntimeWarning,
            stacklevel=4,
        )
