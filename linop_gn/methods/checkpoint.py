"""States in files: written so that a run which is killed at any moment goes on from its latest one.

A file holds the arrays and numbers of a method's state, where the run began, the method's settings
and the place in the stream of batches. It is a safetensors file where that package is installed, else
npz; nothing in it is a pickle. It is written beside its place, forced to the disk and renamed, and the
one before is kept as ``<path>.before``. A linearisation that is no tree of arrays (torch's is a graph) is
not written but made again at x, by the same operations. So is what is of one process's share of the data, or of
sharded parameters, whose vectors are written in the order of the leaves: a state belongs to no number of processes or
devices. Of several processes the first writes; where each has a part of vectors, all of them gather these at once.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..dispatch import load
from ..distributed.agreed import Agreed
from ..operators.base import LinearOperator
from ..protocols import Backend
from ..records import closed, data_fields, memo, opened
from ..spaces import Space, wide
from .base import ServedMethod
from .cursor import Cursor
from .generators import Generators
from .problem import MinimizeProblem
from .running import Run
from .state import State, is_written

__all__ = ["Checkpoint", "restored", "save_state"]

_FORMAT = 2

_UNSEEN = (
    "checkpoint: some processes find a state there to go on from, and others find none: give a path that all of them "
    "see, on a shared disk."
)


def save_state(path: Any, state: State, generators: Iterable[Any] | None = ()) -> None:
    """Write ``state`` to the file ``path``; what was there is kept as ``<path>.before``.

    ``path`` may be a binary file that is open for writing, such as an ``io.BytesIO``. With the state go the states of
    the process's random generators, and of those given, as in :func:`minimize`; of none, where ``generators`` is None.
    Of a run over several processes the first one writes, to an open file each does; all of them call this, for where
    each has a part of the parameters they gather what is written.

    >>> import pathlib, tempfile, numpy as np, linop_gn as lg
    >>> line = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> method, path = lg.LevenbergMarquardt(damping=1.0), pathlib.Path(tempfile.mkdtemp()) / "fit"
    >>> lg.save_state(path, lg.advance(method, line, lg.start(method, line, np.zeros(2))))
    >>> lg.load_state(path, method, line, np.zeros(2))
    State of LevenbergMarquardt after 1 steps: running, value 2.25

    Raises
    ------
    TypeError
        For a state that holds something that is neither an array nor a number, outside of ``method.of_data``.
    """
    if not isinstance(state, State):
        raise TypeError(
            f"save_state takes what lg.start or lg.advance returned, or result.state, got a {type(state).__qualname__}."
        )
    reduction, space = memo(state).reduction, state.space
    drawn = None if generators is None else Generators(generators).states()
    if hasattr(path, "write"):
        _dump(path, *_contents(state, None, drawn))
        return
    writes = space.layout.first if space.in_parts else reduction is None or reduction.first
    if writes or space.in_parts:
        _write(_place_for(path) if writes else None, state, None, drawn)


class Checkpoint:
    """The file that a run is written to, ``every`` so many steps, or so that it takes at most 5 % of the time."""

    def __init__(
        self,
        path: Any,
        every: int | None,
        generators: Generators,
        agreed: Agreed | None = None,
        space: Space | None = None,
    ) -> None:
        if agreed is not None and agreed.reduction.rank is None:
            raise ValueError(
                "checkpoint: one of the processes writes the file, and reduce= does not say which this is: give it as "
                "lg.distributed.Reduction(all_reduce, rank=comm.rank)."
            )
        self._parts = space if space is not None and space.in_parts else None
        self.agreed, self._writes = agreed, agreed is None or agreed.reduction.first
        if self._parts is not None:
            self._writes = self._parts.layout.first
        self.path = _place_for(path) if self._writes else Path(path)
        self.every, self.generators = every, generators
        self._saved, self._ended, self._cost = -1, 0.0, 0.0
        self._place: tuple[Any, ...] | None = None  # no step was taken

    def exists(self) -> bool:
        """Whether there is a state to go on from."""
        found = _newest(self.path) is not None
        if self.agreed is not None:
            self.agreed.require_same(found, _UNSEEN)
        elif self._parts is not None and all(_any(self._parts, wish) for wish in (found, not found)):
            raise ValueError(_UNSEEN)
        return found

    def wait(self) -> None:
        """Until the file is there for all processes."""
        if self.agreed is not None:
            self.agreed.wait()
        elif self._parts is not None:
            _any(self._parts, False)

    def place(self) -> tuple[Any, Any]:
        """The place in the batches of the run that is there, and the states of its generators."""
        header, arrays = _found(self.path)
        return _place(load(header["settings"]["framework"]), header, arrays)

    def keep(self, run: Run, cursor: Cursor | None) -> None:
        """Write the run's state if it is time to."""
        self._place = None if cursor is None else cursor.place(), self.generators.states()
        clock = time.perf_counter() - self._ended
        due = clock >= 19 * self._cost if self.every is None else run.steps - self._saved >= self.every
        if self._parts is not None and self.every is None:  # by the clock of the first
            due = _as_the_first(self._parts, due)
        if due:
            self.save(run)

    def save(self, run: Run) -> None:
        """Write the run's state, unless it is there already."""
        taking_part = self._writes or self._parts is not None
        if taking_part and run.steps != self._saved and self._place is not None:
            clock = time.perf_counter()
            _write(self.path if self._writes else None, run.state, *self._place)
            self._saved, self._ended = run.steps, time.perf_counter()
            self._cost = self._ended - clock

    def rescue(self, run: Run) -> None:
        """:meth:`save` of a run that was broken off, unless it takes other processes, which may be gone."""
        if self._parts is None:
            self.save(run)


def restored(
    path: Any,
    served: ServedMethod,
    problem: MinimizeProblem,
    own: Any,
    generators: Generators | None = None,
    same_data: bool = False,
) -> State:
    """The state in the file, structured like ``own``; what the file could not hold is made again at x.

    The generators, where they are given, are then where they were. ``same_data`` asks for a state of the same data.
    """
    if hasattr(path, "read"):
        (header, arrays), path = _load(path.read()), getattr(path, "name", "the open file")
    else:
        header, arrays = _found(Path(path))
    ops, space = problem.backend, problem.space
    told = _settings(State(own, problem.start, served.method, space))
    differ = [
        f"{name} was {header['settings'].get(name)}, is {value}"
        for name, value in told.items()
        if header["settings"].get(name) != value
    ]
    differ += [f"{name} was {value}, is gone" for name, value in header["settings"].items() if name not in told]
    if differ:
        more = f"; and {len(differ) - 8} more" if len(differ) > 8 else ""
        raise ValueError(
            f"the state in {path} is of another run: {'; '.join(differ[:8])}{more}. Give the same, or another path."
        )
    values = {}
    for name, kept in header["fields"].items():
        like, again = getattr(own, name), name in served.method.of_data
        names, leaves, structure = ops.flatten(like if again else opened(like))
        if again and (not kept or _is_of_shares(like) or space.layout is not None):
            continue
        if [leaf["name"] for leaf in kept] != names:
            raise ValueError(f"the state in {path} has {name} of another structure: was the data's shape another one?")
        filled = [_leaf(ops, arrays, leaf, like, space) for leaf, like in zip(kept, leaves, strict=True)]
        made = ops.unflatten(structure, filled)
        values[name] = made if again else closed(like, made)
    start = _leaf(ops, arrays, header["start"], problem.start, space)
    state = own._replace(**values)
    problem = dataclasses.replace(problem, start=start)
    anew = [name for name in own._fields if name not in values]
    if anew:
        made = served.method.renew(ops, problem, state)
        state = state._replace(**{name: getattr(made, name) for name in anew})
    if same_data:
        _require_same_data(path, problem, state)
    if generators is not None:
        drawn = _place(ops, header, arrays)[1]
        if drawn is None:
            raise ValueError(
                f"the state in {path} was written without random generators: load it with generators=None."
            )
        generators.put_back(drawn)
    return State(state, start, served.method, space)


def _require_same_data(path: Any, problem: MinimizeProblem, state: Any) -> None:
    """Raise unless the value of the state is the objective's at its x, to half of the digits of that at the start."""
    ops = problem.backend
    begun, now = (float(ops.read(problem.for_acceptance(problem.at(x)).value)) for x in (problem.start, state.x))
    was = float(ops.read(state.value))
    if abs(now - was) > ops.eps(problem.start) ** 0.5 * (abs(was) + abs(begun)):
        raise ValueError(
            f"the state in {path} is of another run: at its parameters the value was {was:.6g}, and of the objective "
            f"given now it is {now:.6g}. Give the same function and data, or another path; state= takes other data."
        )


# processes that have a part of vectors each


def _as_the_first(space: Space, wish: bool) -> bool:
    """The wish of the first of the processes."""
    ops = space.backend
    told = ops.asarray(np.asarray(float(wish)), wide(space.dtype), space.device)
    return bool(ops.read(ops.agreed(space.layout, told)) > 0)


def _any(space: Space, wish: bool) -> bool:
    """Whether any of the processes wishes it."""
    ops, numbers = space.backend, space.layout.numbers()
    return bool(ops.max_abs(ops.spread(space.layout, ops.cast(0 * numbers + int(wish), "float32"))) > 0)


# writing


def _place_for(given: Any) -> Path:
    """The path, if a file can be written there: known before a step is taken, rather than when it would be lost."""
    path: Path = Path(given)
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint: {path} is a folder; give a file in it, such as {path / 'run'}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"checkpoint: there is no folder {path.parent} to write {path.name} to: make it first.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"checkpoint: nothing can be written to the folder {path.parent}: give another path.")
    return path


def _contents(state: State, batches: Any, drawn: Any) -> tuple[dict[str, Any], str]:
    """What a file holds: arrays, and the header that says what they are."""
    ops, own = state.space.backend, state.own
    arrays: dict[str, Any] = {}
    fields = {}
    for name, value in zip(own._fields, own, strict=True):
        names, leaves, _ = ops.flatten(value if name in state.method.of_data else opened(value))
        if name in state.method.of_data and (_is_of_shares(value) or state.space.layout is not None):
            continue
        if all(is_written(ops, leaf) for leaf in leaves):
            fields[name] = [_kept(ops, arrays, *pair, state.space) for pair in zip(names, leaves, strict=True)]
        elif name not in state.method.of_data:
            kind = next(type(leaf).__qualname__ for leaf in leaves if not is_written(ops, leaf))
            raise TypeError(
                f"{type(state.method).__name__}: its state holds a {kind} in {name}, which no file can: name the field "
                "in of_data if it can be made again at x, or hold arrays and numbers there."
            )
    header = {
        "format": _FORMAT,
        "settings": _settings(state),
        "fields": fields,
        "start": _kept(ops, arrays, "", state.start, state.space),
        "batches": _plain(ops, arrays, batches),
        "drawn": _plain(ops, arrays, drawn),
    }
    return arrays, json.dumps(header)


def _write(path: Path | None, state: State, batches: Any, drawn: Any) -> None:
    """Write to the path; without one, take part in what those with one gather."""
    contents = _contents(state, batches, drawn)
    if path is None:
        return
    before, beside = path.with_name(path.name + ".before"), path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        _dump(file, *contents)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        path.replace(before)
    beside.replace(path)
    if os.name == "posix":  # the names are on the disk once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_of_shares(value: Any) -> bool:
    """Whether it holds an operator of one process's share of the data."""
    if isinstance(value, LinearOperator):
        return value.reduction is not None
    if isinstance(value, (tuple, list)):
        return any(map(_is_of_shares, value))
    return dataclasses.is_dataclass(value) and any(_is_of_shares(getattr(value, name)) for name in data_fields(value))


def _lies_along(space: Space | None, leaf: Any) -> int | None:
    """The axis of a vector, columns or a basis along which it is in an order that devices have and files have not."""
    if space is None or space.layout is None or not space.backend.is_array(leaf):
        return None
    axis: int | None = space.layout.axis_of(leaf)
    return axis


def _on_host(ops: Backend, leaf: Any, space: Space | None) -> Any:
    """An array as files have it; of a basis each process gathers a vector at a time."""
    axis = _lies_along(space, leaf)
    if space is None or axis is None:
        return np.asarray(ops.to_numpy(leaf) if ops.is_array(leaf) else leaf)
    return np.stack([space.in_order(ops.row(leaf, i)) for i in range(len(leaf))]) if axis else space.in_order(leaf)


def _kept(ops: Backend, arrays: dict[str, Any], name: str, leaf: Any, space: Space | None = None) -> dict[str, Any]:
    """What the header says of a leaf; arrays go into ``arrays``, vectors of ``space`` in the order of its leaves."""
    if isinstance(leaf, np.generic):
        leaf = leaf.item()
    if leaf is None or isinstance(leaf, (bool, int, float)):
        return {"name": name, "value": leaf}
    key = str(len(arrays))
    dtype = ops.describe(leaf)[1] if ops.is_array(leaf) else "host"
    array = _on_host(ops, leaf, space)
    if dtype == "bfloat16":  # NumPy has none: the upper half of a float32
        array = (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    arrays[key] = array
    return {"name": name, "array": key, "dtype": dtype}


def _leaf(ops: Backend, arrays: dict[str, Any], kept: dict[str, Any], like: Any, space: Space | None = None) -> Any:
    """The leaf again, where ``like`` is."""
    if "array" not in kept:
        return kept["value"]
    array, dtype = arrays[kept["array"]], kept["dtype"]
    if dtype == "host":
        return array
    if dtype == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if space is not None and (axis := _lies_along(space, like)) is not None:
        if axis == 0:
            return space.from_order(array, dtype)
        return ops.grow(space.from_order(array.T, dtype).T, len(array), len(array))
    return ops.asarray(array, dtype, None if like is None else ops.describe(like)[2])


def _plain(ops: Backend, arrays: dict[str, Any], tree: Any) -> Any:
    """A loader's state as JSON, with its arrays in ``arrays``."""
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, dict) and all(isinstance(name, str) for name in tree):
        return {name: _plain(ops, arrays, child) for name, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_plain(ops, arrays, child) for child in tree]
    if isinstance(tree, (np.generic, np.ndarray)) or ops.is_array(tree):
        return {"of array": _kept(ops, arrays, "", tree)}
    raise TypeError(
        f"the loader's state_dict holds a {type(tree).__qualname__}, which no file without pickles can: keep arrays, "
        "numbers and text there."
    )


def _again(ops: Backend, arrays: dict[str, Any], tree: Any) -> Any:
    """The inverse of :func:`_plain`; NumPy's arrays are NumPy's again."""
    if isinstance(tree, dict) and "of array" in tree:
        kept = tree["of array"]
        return arrays[kept["array"]] if kept.get("dtype") == "host" else _leaf(ops, arrays, kept, None)
    if isinstance(tree, dict):
        return {name: _again(ops, arrays, child) for name, child in tree.items()}
    return [_again(ops, arrays, child) for child in tree] if isinstance(tree, list) else tree


def _settings(state: State) -> dict[str, str]:
    """What must be the same for a state to go on: the method's fields, the parameters' names and kinds."""
    space = state.space
    params = zip(space.names, space.shapes, space.dtypes, strict=True)
    told = {f"parameter {name or 'array'}": f"{dtype}{list(shape)}" for name, shape, dtype in params}
    return {"framework": space.backend.name, **told, **_said(state.space.backend, "method", state.method)}


def _said(ops: Backend, name: str, value: Any) -> dict[str, str]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        of = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        inner = {k: v for key, child in of.items() for k, v in _said(ops, f"{name}.{key}", child).items()}
        return {name: type(value).__qualname__, **inner}
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in _said(ops, f"{name}.{key}", child).items()}
    if callable(value):
        return {name: getattr(value, "__qualname__", type(value).__qualname__)}
    if ops.is_array(value):
        value = np.asarray(ops.to_numpy(value)).tolist()
    return {name: repr(value.item() if isinstance(value, np.generic) else value)}


def _dump(file: Any, arrays: dict[str, Any], header: str) -> None:
    if find_spec("safetensors") is not None:
        from safetensors.numpy import save

        file.write(save(arrays, {"linop_gn": header}))
    else:
        np.savez(file, allow_pickle=False, **{"": np.frombuffer(header.encode(), np.uint8), **arrays})


def _found(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    found = _newest(path)
    if found is None:
        raise FileNotFoundError(f"there is no state in {path}.")
    return found


def _place(ops: Backend, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, Any]:
    return _again(ops, arrays, header["batches"]), _again(ops, arrays, header["drawn"])


def _newest(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Header and arrays of the newest of two files that can be read."""
    broken, before = None, path.with_name(path.name + ".before")
    for file in (path, before):
        if file.exists():
            try:
                return _load(file.read_bytes())
            except Exception as error:  # each reader has its own way to fail on half a file
                broken = error
    if broken is not None:
        raise ValueError(
            f"neither {path} nor {before.name} beside it holds a whole state ({broken}). To begin anew, delete them "
            "or give another path."
        ) from broken
    return None


def _load(raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    if raw[:4] == b"PK\3\4":  # a zip archive
        with np.load(io.BytesIO(raw), allow_pickle=False) as held:
            arrays = dict(held)
        if "" not in arrays:
            raise ValueError("it is an npz file of something else")
        header = json.loads(arrays.pop("").tobytes())
    elif raw[8:9] != b"{":
        raise ValueError("it is neither an npz nor a safetensors file" if raw else "it is empty")
    else:
        if find_spec("safetensors") is None:
            raise ImportError("it is a safetensors file: pip install safetensors")
        from safetensors.numpy import load as arrays_of

        arrays, size = arrays_of(raw), int.from_bytes(raw[:8], "little")
        header = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["linop_gn"])
    if header["format"] != _FORMAT:
        raise ValueError(f"it is of format {header['format']}, and this version of linop_gn reads {_FORMAT}.")
    return header, arrays
