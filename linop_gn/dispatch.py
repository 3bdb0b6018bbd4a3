"""Which backend an array belongs to, found without importing any framework.

Backends are entry points of the group ``linop_gn.backends``. An entry point's
name is the root module of the array type it serves (``numpy``, ``torch``,
``jax`` and ``jaxlib``), so that ``type(x).__module__`` leads to it: the look-up
is cached by type, happens only for arrays that the user already has, and so
never imports a framework that the user has not imported.

After einops' per-type backend look-up; the difference is that third parties
register theirs by packaging metadata alone.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from .arguments import require_plain
from .protocols import CONTRACT, Backend

__all__ = ["available", "backend_of", "load", "namespace", "register", "writing_for"]

GROUP = "linop_gn.backends"

_by_type: dict[type, Backend | None] = {}


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


@cache
def load(name: str) -> Backend:
    """The backend called ``name``; imports its framework.

    >>> load("numpy")
    <linop_gn backend 'numpy'>

    Raises
    ------
    LookupError
        If no installed distribution provides it.
    ImportError
        If its framework is not installed, if it raises anything as it is imported, is no backend, or was written for
        another contract.
    """
    entry = _entry(name)
    source = entry.dist.metadata["Name"] if entry.dist else entry.module
    try:
        return _contracted(entry.load(), source)
    except ImportError:
        raise
    except (Exception, SystemExit) as error:
        told = f"the backend {name!r} ({source}) fails as it is imported: {type(error).__name__}: {error}"
        raise ImportError(told) from error


def _known() -> str:
    """The names of the backends whose framework is installed, those of the others, and why some cannot be used."""
    there: list[str] = []
    missing: list[str] = []
    broken: list[str] = []
    for name in sorted(_entries()):
        if sys.modules.get(name) is None:
            (there if find_spec(name) is not None else missing).append(name)
            continue
        try:
            load(name)
            there.append(name)
        except ImportError as error:
            broken.append(f"{name}: {error}")
    told = {"not installed": ", ".join(missing), "not usable": "; ".join(broken)}
    rest = "; ".join(f"{why}: {which}" for why, which in told.items() if which)
    return ", ".join(there) + (f" ({rest})" if rest else "")


def _entry(name: str, told: str = "") -> EntryPoint:
    if name not in _entries():
        near = get_close_matches(name, _entries(), n=1, cutoff=0.5)
        raise LookupError(
            f"{told}no backend called {name!r} is installed; there are: {_known()}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + f" A backend is an entry point of the group {GROUP!r}, named after the root module of its array type."
        )
    return _entries()[name]


@cache
def _members() -> frozenset[str]:
    """The names that the contract has."""
    told = (vars(kind) | vars(kind).get("__annotations__", {}) for kind in Backend.__mro__)
    return frozenset(name for names in told for name in names if not name.startswith("_")) - {"contract"}


def _contracted(backend: Backend, source: str) -> Backend:
    """The backend, which ``source`` brought, if it is one, and was written for this contract."""
    lacking = sorted(name for name in _members() if not hasattr(backend, name))
    if isinstance(backend, type) or lacking:
        why = "a class, not an instance" if isinstance(backend, type) else f"without {', '.join(lacking[:4])}"
        why += f" and {len(lacking) - 4} more" if len(lacking) > 4 and not isinstance(backend, type) else ""
        raise ImportError(
            f"{source} brings {backend!r} for a backend, which is none: it is {why}. An entry point of {GROUP!r} names "
            "an object that passes linop_gn.testing.check_backend."
        )
    contract = getattr(backend, "contract", None)
    if contract is None:
        warnings.warn(
            f"the backend {getattr(backend, 'name', backend)!r} ({source}) does not say which contract it was written "
            f"for, and the next release of linop_gn will refuse it: set contract = {CONTRACT} in its class, once it "
            "passes linop_gn.testing.check_backend.",
            DeprecationWarning,
            stacklevel=3,
        )
    elif contract != CONTRACT:
        advice = "upgrade linop_gn" if contract > CONTRACT else f"upgrade {source}, or install the linop_gn of its time"
        raise ImportError(
            f"the backend {backend.name!r} ({source}) was written for contract {contract} and this linop_gn keeps "
            f"contract {CONTRACT}: {advice}."
        )
    return backend


def require_registered(name: Any) -> None:
    """Raise unless ``derivatives=name`` names a backend, whether it can be loaded or not.

    Raises
    ------
    TypeError, LookupError
        Saying what would do.
    """
    if not isinstance(name, str):
        raise TypeError(f"derivatives= is the name of a framework, such as 'torch' or 'jax', got {name!r}.")
    _entry(name, f"derivatives={name!r}: ")


def available() -> dict[str, Backend | ImportError]:
    """Every registered backend by name, or the error that importing its framework gave.

    >>> available()["numpy"]
    <linop_gn backend 'numpy'>
    """
    found: dict[str, Backend | ImportError] = {}
    for name in _entries():
        try:
            backend = load(name)
        except ImportError as error:
            found[name] = error
        else:
            found[backend.name] = backend
    return found


def register(kind: type, backend: Backend) -> None:
    """Let ``backend`` serve arrays of the type ``kind``, in this process.

    For an array type that no installed distribution has an entry point for:
    a library being tried out, or a subclass that is to behave differently from
    its parent, as the debug arrays of :mod:`linop_gn.testing` do. The backend's contract is checked as in :func:`load`.

    >>> import numpy as np
    >>> class Tagged(np.ndarray): ...
    >>> register(Tagged, load("numpy"))
    >>> backend_of(np.ones(2).view(Tagged))
    <linop_gn backend 'numpy'>
    """
    _by_type[kind] = _contracted(backend, type(backend).__qualname__)


def owner_of_type(kind: type) -> Backend | None:
    """The backend that things of a type belong to, arrays or not, if any."""
    if kind not in _by_type:
        require_plain(kind)
        roots = [base.__module__.partition(".")[0] for base in kind.__mro__]
        name = next((root for root in roots if root in _entries()), None)
        _by_type[kind] = load(name) if name else None
    return _by_type[kind]


def imported() -> Iterator[Backend]:
    """The backends of frameworks that this process has imported; not those that cannot be loaded."""
    for name in _entries():
        if sys.modules.get(name) is not None:
            with suppress(ImportError):
                yield load(name)


def is_container(x: Any) -> bool:
    """Whether a framework that has been imported knows ``x`` for a container."""
    found = (backend.flatten(x)[1] for backend in imported())
    return any(len(leaves) != 1 or leaves[0] is not x for leaves in found)


def _leaves(tree: Any) -> Iterator[Any]:
    """Things in ``tree`` that may belong to a backend, found without knowing the framework's containers."""
    if isinstance(tree, dict) or (isinstance(tree, Mapping) and not is_container(tree)):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _leaves(value)
    elif tree is not None:
        yield tree


def owner_of(leaf: Any) -> Backend | None:
    """The backend that one leaf belongs to, if any."""
    backend = owner_of_type(type(leaf))
    if backend is not None:
        return backend
    # A container that only its framework's tree functions know (flax, equinox, attrs...):
    # ask the frameworks that the user has already imported.
    if isinstance(leaf, (int, float, complex, str, bytes)):
        return None
    for candidate in imported():
        inside = candidate.flatten(candidate.normalize(leaf))[1]
        if inside and all(candidate.is_array(x) for x in inside):
            return owner_of_type(type(inside[0]))
    return None


def backend_of(*trees: Any) -> Backend:
    """The one backend that all arrays in ``trees`` belong to.

    >>> import numpy as np
    >>> backend_of({"weight": np.ones(3)})
    <linop_gn backend 'numpy'>

    Raises
    ------
    TypeError
        If there is no array, or if arrays of two frameworks are mixed.
    """
    alone = _by_type.get(type(trees[0])) if len(trees) == 1 else None
    if alone is not None:  # nearly always: an array
        return alone
    found: dict[str, tuple[Backend, Any]] = {}
    for leaf in _leaves(trees):
        backend = owner_of(leaf)
        if backend is not None:
            found.setdefault(backend.name, (backend, leaf))
    if len(found) == 1:
        return next(iter(found.values()))[0]
    if not found:
        kinds = ", ".join(sorted({type(leaf).__qualname__ for leaf in _leaves(trees)})) or "None, or an empty tree"
        raise TypeError(
            f"no array of a known framework was found (got {kinds}); known are {_known()}. "
            f"{_instead_of(next(_leaves(trees), None))}"
        )
    kind_of = {name: type(leaf) for name, (_, leaf) in found.items()}
    owners = "; ".join(f"{name}: {kind.__module__}.{kind.__qualname__}" for name, kind in kind_of.items())
    raise TypeError(
        f"arrays of several frameworks are mixed ({owners}). Convert them to one of these first, by its asarray(x): "
        "parameters, inputs, targets and vectors must all belong to the same framework."
    )


def _instead_of(leaf: Any) -> str:
    """What to pass instead of something in which there is no array."""
    if isinstance(leaf, Iterator):
        return "What can be read once is no tree: write list(module.parameters()) or dict(module.named_parameters())."
    if hasattr(leaf, "tocsr"):
        return "Sparse matrices come in by lg.from_scipy(matrix)."
    if hasattr(leaf, "to_numpy"):
        return "Write x.to_numpy()."
    if isinstance(leaf, (int, float)):
        return "Write numbers as an array: np.asarray(x, dtype=float)."
    return "Pass arrays, or a tree (dict, list, tuple, module) of arrays."


def how_to_bring(backend: Backend) -> str:
    """What to write for arrays of another framework than they are needed in."""
    name = getattr(backend.namespace(), "__name__", backend.name).removeprefix("array_api_compat.")
    return f"convert it: {name}.asarray(x)"


_written_for: ContextVar[Backend | None] = ContextVar("written_for", default=None)


def namespace(x: Any) -> Any:
    """The array-API namespace of the arrays in ``x``, to write one model for all frameworks.

    >>> import numpy as np
    >>> namespace(np.ones(3)).sum
    <function sum at ...>
    """
    return (_written_for.get() or backend_of(x)).namespace()


@contextmanager
def writing_for(backend: Backend) -> Iterator[None]:
    """Inside, :func:`namespace` is that of ``backend`` whatever it is asked about.

    For a backend that differentiates another's arrays: a model's inputs, which are
    plain arrays, then lead to the functions that record, as its parameters do.
    """
    token = _written_for.set(backend)
    try:
        yield
    finally:
        _written_for.reset(token)
