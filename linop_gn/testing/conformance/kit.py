"""The kit as one class, and a way to run it without a test runner."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import SkipTest

from ...protocols import Backend
from .aliasing import Aliasing
from .arrays import Arrays
from .base import Kit
from .bases import Bases
from .calculus import FirstOrder
from .choices import Choices
from .claims import Claims
from .curvature import SecondOrder
from .factors import Factors
from .machine import Stateful
from .operators import Operators
from .programs import Programs
from .report import ConformanceReport, Finding
from .scalars import Scalars
from .spaces import Spaces
from .stores import Stores
from .vectors import Vectors

__all__ = ["BackendConformance", "check_backend", "laws"]


class BackendConformance(
    Claims,
    Arrays,
    Spaces,
    Vectors,
    Scalars,
    Choices,
    Stores,
    Bases,
    Factors,
    Programs,
    Stateful,
    Operators,
    FirstOrder,
    SecondOrder,
    Aliasing,
):
    """Every law that a backend must keep.

    Subclass it in a module of tests::

        from linop_gn.testing import BackendConformance
        from my_package import backend


        class TestMine(BackendConformance):
            backend = backend

    Attributes
    ----------
    backend
        The backend.
    capabilities
        What the laws hold it to; by default what it declares. A set that differs from that is an error,
        so that writing it down keeps a capability from being lost unnoticed.
    derivatives
        For a backend that differentiates the arrays of another one: the name that objectives know it by.

    Methods
    -------
    array(host, dtype)
        A new array from NumPy data. Override it to try another device.
    read_only(x)
        The same numbers in an array that cannot be written to, or None.
    """


def laws(kit: type = BackendConformance) -> list[str]:
    """Names of the laws of a kit, in order.

    >>> laws()[:2]
    ['capabilities', 'identity']
    """
    classes = [kit, *(base for base in BackendConformance.__mro__ if base is not kit)]
    ordered = [name for base in _by_topic(classes) for name in vars(base) if name.startswith("test_")]
    return [name.removeprefix("test_") for name in dict.fromkeys(ordered)]


def _by_topic(classes: list[type]) -> Iterator[type]:
    """The mix-ins in the order that they are listed in, each after what it builds on; a subclass last."""
    seen: set[type] = set()
    for base in (*BackendConformance.__bases__, *classes):
        for inner in reversed(base.__mro__):
            if inner not in seen:
                seen.add(inner)
                yield inner


def check_backend(
    backend: Backend,
    *,
    array: Callable[[Any, str], Any] | None = None,
    capabilities: Iterable[str] | None = None,
    only: Iterable[str] | None = None,
    stop: bool = False,
    kit: type[BackendConformance] = BackendConformance,
) -> ConformanceReport:
    """Hold ``backend`` to every law and say how it fared, without a test runner.

    Parameters
    ----------
    backend
        The backend; its arrays must find it (an entry point, or :func:`linop_gn.register`).
    array
        ``(host, dtype) -> array``, where the default would put arrays on the wrong device.
    capabilities
        As in :class:`BackendConformance`.
    only
        Names of laws, to run no others.
    stop
        Stop at the first law that fails. Laws build on those before them, so that the first is the one to look at.
    kit
        A subclass with laws of its own.

    Returns
    -------
    ConformanceReport
        Prints as a table of the laws; ``failed`` names those that failed; ``report[law].error`` has the traceback.

    >>> import linop_gn as lg
    >>> print(check_backend(lg.load("numpy"), only=["copy", "jvp"]))
    numpy: 1 law passed, 1 skipped
    <BLANKLINE>
      law   status   what it says
      copy  passed   copy(x) is a new array: what is done to it leaves x alone.
      jvp   skipped  jvp(v) is J v, an array like the outputs, the same at each call, written over where it is fresh; v
                     stays. (numpy does not claim 'derivatives')

    Raises
    ------
    TypeError, ValueError
        For what is no backend, and for names in ``only`` that no law has.
    """
    if isinstance(backend, (type, str)) or not hasattr(backend, "describe"):
        raise TypeError(f"check_backend needs the backend itself, such as lg.load('numpy'), got {backend!r}.")
    body: dict[str, Any] = {"backend": backend}
    if capabilities is not None:
        body["capabilities"] = frozenset(capabilities)
    if array is not None:
        make = array
        body["array"] = lambda self, host, dtype: make(host, dtype)
    return report_of(backend.name, type(kit.__name__, (kit,), body), laws(kit), only, stop)


def report_of(
    title: str, bound: type[Kit], names: list[str] | None = None, only: Iterable[str] | None = None, stop: bool = False
) -> ConformanceReport:
    """What the laws of ``bound`` say, in the order of ``names``: those of its classes, if left out."""
    if names is None:
        methods = [name for base in reversed(bound.__mro__) for name in vars(base) if name.startswith("test_")]
        names = [name.removeprefix("test_") for name in dict.fromkeys(methods)]
    wanted = set(names if only is None else [only] if isinstance(only, str) else only)
    unknown = sorted(wanted - set(names))
    if unknown:
        raise ValueError(f"there are no laws called {unknown}; there are {names}.")
    findings: list[Finding] = []
    for name in names:
        if name in wanted:
            findings.append(outcome(bound, name))
            if stop and findings[-1].status == "failed":
                break
    return ConformanceReport(title, tuple(findings))


def outcome(bound: type[Kit], name: str) -> Finding:
    """What one law says of the kit ``bound``."""
    kit = bound()
    law = getattr(kit, f"test_{name}")
    sentence = " ".join((inspect.getdoc(law) or "").split())
    try:
        kit.setup_method()
        try:
            law()
        finally:
            kit.teardown_method()
    except SkipTest as skipped:
        return Finding(name, sentence, "skipped", str(skipped))
    except Exception as error:
        return Finding(name, sentence, "failed", _told(error), error)
    return Finding(name, sentence, "passed")


def _told(error: Exception) -> str:
    """What a law had to say, or what broke it and where."""
    if isinstance(error, AssertionError):
        return " ".join(str(error).split())
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__} ({place.filename.rpartition('/')[2]}:{place.lineno}): {error}"
