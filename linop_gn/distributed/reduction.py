"""What sums arrays over processes: the contract, and how a function that does it is taken.

Several arrays travel as one: a value, a gradient and the weight of the examples are one collective, so that what is
divided is the sum over all processes, and what it is divided by as well.

With them go *marks*, which must be the same everywhere, such as a fingerprint of the parameters. Of c processes with
marks m_r,

    c sum_r m_r^2 = (sum_r m_r)^2    if and only if all m_r are equal                      (Cauchy and Schwarz)

so that sums alone tell it, and tell all processes the same. Marks are cut into numbers below 16, whose sums any
floating-point format of 24 bits holds exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from zlib import crc32

import numpy as np

from ..protocols import Array, Backend, Vector
from ..protocols.processes import is_leaving

__all__ = ["OtherProcessError", "Reduction", "as_reduction", "as_sent", "mark_of", "require_others", "which_differs"]

_PARTS = 8
"""Numbers below 16 that a mark of 32 bits is cut into."""


class OtherProcessError(RuntimeError):
    """Another process raised, and this one cannot go on without it."""


def require_others() -> None:
    """Raise where this process is :func:`~linop_gn.protocols.processes.leaving`."""
    if is_leaving():
        raise OtherProcessError("what breaks off waits for no other process.")


class Reduction:
    """What sums arrays over processes.

    Parameters
    ----------
    all_reduce
        A function of a flat array that returns its sum over all processes, the same on each of them to the last bit. It
        may write into the array, which is its own, and return that, or None.
    rank, size
        The number of this process, and how many there are. The first one writes checkpoints and shows progress; without
        a rank each process shows its own, and ``checkpoint=`` is refused.

    Where a function is expected (``lg.Objective(..., reduce=)``), one that needs no rank may be given as it is. A
    subclass for a library of its own overrides :meth:`all_reduce`, and what else it knows better.

    >>> import numpy as np, linop_gn as lg
    >>> alone = lg.distributed.Reduction(lambda x: x, rank=0, size=1)
    >>> fit = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2), reduce=alone)
    >>> fit.gradient(np.zeros(2))
    array([-3., -3.])
    """

    def __init__(self, all_reduce: Callable[[Array], Any], rank: int | None = None, size: int | None = None) -> None:
        if not callable(all_reduce):
            raise TypeError(
                "reduce= is a function of a flat array that returns its sum over all processes, or an "
                f"lg.distributed.Reduction; got a {type(all_reduce).__qualname__}."
            )
        self._all_reduce, self.rank, self.size = all_reduce, rank, size
        self._known: dict[Any, bool] = {}
        self.short = False
        """Whether a process may have no batch at all."""

    # what a subclass may know better

    def all_reduce(self, ops: Backend, x: Vector) -> Vector:
        """The sum of ``x`` (n,) over all processes; ``x`` may be written into."""
        require_others()
        made = self._all_reduce(x)
        made = x if made is None else made  # as torch.distributed.all_reduce and MPI's functions in place
        if not ops.is_array(made) or ops.describe(made)[:2] != ops.describe(x)[:2]:
            shape, dtype, _ = ops.describe(x)
            got = "{1}{0}".format(*ops.describe(made)) if ops.is_array(made) else type(made).__qualname__
            raise TypeError(
                f"reduce= must return the sum over processes of the {ops.name} array {dtype}{shape} that it was given, "
                f"or write it there and return None; it returned {got}."
            )
        return made

    def fingerprint(self, ops: Backend, x: Vector) -> int:
        """A number of 32 bits that tells arrays of other bits apart."""
        return crc32(np.ascontiguousarray(ops.to_numpy(x)).tobytes())

    def check_model(self, model: Any) -> None:
        """Raise for a model that is no sum over examples."""

    def told_of_model(self, model: Any, names: Sequence[str]) -> Any:
        """What of a model must be the same everywhere, besides the parameters of these names: its mode, its buffers."""

    def telling(self) -> AbstractContextManager[Any]:
        """What is raised inside, the other processes hear of where they wait for this one."""
        return nullcontext()

    def aside(self) -> AbstractContextManager[Any]:
        """Inside of :meth:`telling`, what is done inside belongs to no sum."""
        return nullcontext()

    # what is asked

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and shows."""
        return not self.rank

    def sum(self, ops: Backend, arrays: Sequence[Array], marks: Mapping[str, int] | None = None) -> list[Array]:
        """The arrays summed over all processes, by one collective. Consumes the arrays.

        Raises
        ------
        ValueError
            On all processes, where a mark (of 32 bits) is not the same on all of them: with the sentence that it stands
            under in ``marks``.
        """
        known = [ops.describe(x) for x in arrays]
        if len(arrays) == 1 and not marks:
            flat = ops.namespace().reshape(ops.lendable(arrays[0]), (-1,))
            return [ops.namespace().reshape(self.all_reduce(ops, flat), known[0][0])]
        shapes, dtypes = [shape for shape, _, _ in known], [dtype for _, dtype, _ in known]
        wide = "float64" if "float64" in dtypes else "float32"
        wide = dtypes[0] if len(set(dtypes)) == 1 and not (marks and dtypes[0] != wide) else wide
        extra = [] if not marks else [ops.asarray(as_sent(marks.values()), wide, known[0][2])]
        flat = self.all_reduce(ops, ops.pack([*arrays, *extra], wide))
        sizes = [*shapes, *(tuple(x.shape) for x in extra)]
        made = ops.split(flat, sizes, [*dtypes, *(wide for _ in extra)])
        if marks:
            _require_equal(np.asarray(ops.to_numpy(made.pop())), marks)
        return made

    def compare(self, ops: Backend, like: Vector, marks: Mapping[str, int], wish: bool | None = None) -> bool:
        """Raise on all processes unless each mark is the same on all of them: the sentence that it stands under.

        Returns whether any of them, which are all asked, has a ``wish``. All travels in one dtype, whatever that of
        ``like`` is: of dtypes that differ there is something to be said too.
        """
        asked = () if wish is None else (float(wish),)
        sent = ops.asarray(np.array([*as_sent(marks.values()), *asked]), "float32", ops.describe(like)[2])
        found = np.asarray(ops.to_numpy(self.all_reduce(ops, sent))).tolist()
        wishes = [found.pop() for _ in asked]
        _require_equal(found, marks)
        return any(wishes)

    def require_same(self, ops: Backend, like: Vector, mark: int, what: str) -> None:
        """Raise on all processes, saying ``what``, unless the mark is the same on all of them."""
        self.compare(ops, like, {what: mark})

    def require_known(self, ops: Backend, like: Vector, told: Any, what: str, wish: bool = False) -> bool:
        """:meth:`require_same` of the text of ``told``, the first time that it is met; whether any wished then."""
        if told not in self._known:
            self._known[told] = self.compare(ops, like, {what: mark_of(told)}, wish)
        return self._known[told]

    def count(self, ops: Backend, like: Vector, number: float) -> float:
        """The sum of a number over all processes."""
        sent = ops.asarray(np.array([float(number)]), "float32", ops.describe(like)[2])
        return float(ops.to_numpy(self.all_reduce(ops, sent))[0])

    def numbers(self, ops: Backend, like: Vector, number: int) -> list[int]:
        """A number of each process, in the order of their ranks, which have to be known."""
        assert self.rank is not None
        assert self.size is not None
        told = np.where(np.arange(self.size) == self.rank, float(number), 0.0)
        sent = ops.asarray(told, "float32", ops.describe(like)[2])
        return [round(x) for x in np.asarray(ops.to_numpy(self.all_reduce(ops, sent))).tolist()]

    def any(self, ops: Backend, like: Vector, wish: bool) -> bool:
        """Whether any process wishes it."""
        return self.count(ops, like, bool(wish)) > 0

    def place(self, i: int) -> int:
        """The number of this process's batch ``i`` among those of all of them, as far as their number is known."""
        return i if self.rank is None or self.size is None else i * self.size + self.rank

    def __deepcopy__(self, memo: Any) -> Reduction:
        return self  # the processes are the same

    def __repr__(self) -> str:
        of = "" if self.size is None else f" of {self.size}"
        return f"{type(self).__name__}({'' if self.rank is None else f'process {self.rank}{of}'})"


def as_reduction(given: Any) -> Reduction | None:
    """What users pass as ``reduce=``, as a reduction."""
    return given if given is None or isinstance(given, Reduction) else Reduction(given)


def mark_of(told: Any) -> int:
    """A mark of 32 bits of what ``told`` reads as."""
    return crc32(repr(told).encode())


def as_sent(marks: Iterable[int]) -> np.ndarray[Any, Any]:
    """1, and m and m^2 of each part of the marks: what is summed over processes."""
    parts = [mark >> 4 * i & 15 for mark in marks for i in range(_PARTS)]
    return np.array([1, *(x for m in parts for x in (m, m * m))], float)


def which_differs(sums: Any) -> int | None:
    """The first of the marks that was not the same on all processes, by the sums of what they sent; None: all were."""
    number, *both = (round(float(x)) for x in sums)
    unlike = [number * q != s * s for s, q in zip(both[::2], both[1::2], strict=True)]
    return unlike.index(True) // _PARTS if any(unlike) else None


def _require_equal(sums: Any, marks: Mapping[str, int]) -> None:
    found = which_differs(sums)
    if found is not None:
        raise ValueError(list(marks)[found])
