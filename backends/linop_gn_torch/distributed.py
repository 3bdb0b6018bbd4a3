"""Sums over the process groups of ``torch.distributed``, and what becomes of the others where one process fails.

All-reduced tensors are the same on all processes to the last bit, with gloo and with NCCL. They are summed outside of
any graph: ``torch.distributed.nn.all_reduce`` in one would sum again on the way back.

A process that raises leaves the others in a collective that it never enters. So it writes what it raised to the group's
store first, and whoever waits for longer than a moment looks there, and raises too. Collectives are numbered; a failure
is one *before* the collective of a number. Where all processes failed before the same one, as they do of a wrong
argument, they are still in step and may go on; where some had entered it, the group is not to be used any more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from linop_gn.backend import Backend
from linop_gn.distributed import OtherProcessError, Reduction
from linop_gn.distributed.reduction import require_others

from .modules import AdaptedModule
from .shards import is_sharded, mark_of_bits, sharing
from .spread import batch_norm_in_training, modules_of, unwrapped

__all__ = ["TorchProcesses", "TorchReduction"]

_MOMENT = 0.25
"""Seconds after which who waits looks for what others raised."""
_GRACE = 5.0
"""Seconds that the process with the store stays for others to read it, at most."""
_PREFIX = "linop_gn"


class TorchProcesses:
    """The part of the backend that :class:`linop_gn.protocols.Processes` describes."""

    def processes(self, group: Any, model: Any) -> tuple[Reduction, Any]:
        """The reduction over a group, and the module inside of a ``DistributedDataParallel``."""
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "lg.distributed.DataParallel: there is no process group yet. Call torch.distributed.init_process_group "
                "first, and run the script by torchrun --nproc-per-node N script.py."
            )
        inside, own = unwrapped(model)
        group = group if group is not None else own if own is not None else dist.group.WORLD
        if dist.get_rank(group) < 0:
            raise ValueError(
                "lg.distributed.DataParallel: this process is not in the group. Make the objective in those that are."
            )
        return TorchReduction(group), inside


class Line:
    """What the processes of a group tell each other besides sums: in which collective they are, and what they raised.

    There is one for each group, so that all objectives on it count together.
    """

    def __init__(self, group: Any) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.limit = _limit_of(group)
        self.number = 0
        """Of the latest collective that this process entered, or failed before."""
        self._failed: int | None = None
        self._told: BaseException | None = None
        try:
            store = group.get_group_store()
            turn = (store.add(f"{_PREFIX}/made", 1) - 1) // self.size  # the store may have served an earlier group
            self._store: Any = dist.PrefixStore(f"{_PREFIX}/{turn}", store)
        except (AttributeError, RuntimeError, TypeError):
            self._store = None

    @classmethod
    def of(cls, group: Any) -> Line:
        """That of a group."""
        found = _lines.get(group)
        if found is None:
            found = _lines[group] = cls(group)
        return found

    def enter(self) -> None:
        """Enter a collective: after a failure only if all processes failed before the same one."""
        number = self._failed
        if number is not None and self._store is not None:
            begun = time.monotonic()
            while not self._all_told(number) and time.monotonic() - begun < self.limit:
                time.sleep(0.01)
            if self._count("failed", number) < self.size:
                raise OtherProcessError(
                    "a process raised before where the others waited for it, so that the group is out of step: end the "
                    "run on all of them, or make a new group and new objectives on it: "
                    "lg.distributed.DataParallel(objective, torch.distributed.new_group())."
                )
            self._failed = None
        self.number += 1

    def tell(self, error: BaseException) -> None:
        """Leave word for those who wait in the next collective; once."""
        if self._store is None or any(e is self._told or isinstance(e, _HEARD) for e in _chain(error)):
            return  # of one failure, or what followed from it
        self._told, self.number = error, self.number + 1
        self._failed = self.number
        message = {"rank": self.rank, "error": _said(error)}
        if self._count("failed", self.number, 1) == 1:
            self._store.set(self._key("told", self.number), json.dumps(message))
        end = time.monotonic() + _GRACE
        while dist.get_rank() == 0 and not self._all_told(self.number) and time.monotonic() < end:
            time.sleep(0.01)  # the store may end with this process

    def listen(self) -> None:
        """Raise what another process raised instead of entering this collective."""
        told = self._key("told", self.number)
        if self._store is None:
            return
        try:
            if not self._store.check([told]):
                return
            message = json.loads(self._store.get(told))
            self._count("waited", self.number, 1)
        except RuntimeError:  # the process with the store is gone: the collective will say so
            return
        self._failed = self.number
        raise OtherProcessError(
            f"process {message['rank']} of {self.size} raised {message['error']}\n"
            f"Process {self.rank} waited for it, and ends as well."
        )

    def lost(self, what: str, cause: BaseException | None = None) -> None:
        """Raise because the collective came to nothing."""
        self._failed = self.number
        raise OtherProcessError(
            f"process {self.rank} of {self.size} {what}. One of them ended, or took another way: all have to ask for "
            "the same, in the same order."
        ) from cause

    def _key(self, what: str, number: int) -> str:
        return f"{number}/{what}"

    def _count(self, what: str, number: int, more: int = 0) -> int:
        return int(self._store.add(self._key(what, number), more))

    def _all_told(self, number: int) -> bool:
        return self._count("failed", number) + self._count("waited", number) >= self.size


_HEARD = OtherProcessError, GeneratorExit


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came of; each once, for one may be raised from itself."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    """Its kind, and what it says if it can."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # of its own __str__
        return type(error).__name__


_lines: WeakKeyDictionary[Any, Line] = WeakKeyDictionary()


def _limit_of(group: Any) -> float:
    """How many seconds the group waits, by itself, for a process."""
    with suppress(Exception):  # torch tells it by private names only
        device = torch.device("cpu" if "gloo" in str(dist.get_backend(group)) else "cuda")
        return float(group._get_backend(device).options._timeout.total_seconds())
    return 1800.0


class TorchReduction(Reduction):
    """The sums of one group."""

    def __init__(self, group: Any) -> None:
        self.line, self.group = Line.of(group), group
        self._meshes: set[Any] = set()
        super().__init__(lambda x: x, self.line.rank, self.line.size)
        self._waits_in_slices = "gloo" in str(dist.get_backend(group))

    def fingerprint(self, ops: Backend, x: Tensor) -> int:
        """Of sums of the bits as whole numbers, which no order of adding changes: without leaving the device."""
        return 0 if is_sharded(x) else mark_of_bits([x])  # of which each process has another part

    def told_of_model(self, model: Any, names: Sequence[str]) -> Any:
        """Of each module its kind, its mode and, if it is torch's, its numbers; a mark of what is not trained."""
        model = model.source if isinstance(model, AdaptedModule) else model
        told, held = [], dict[int, Tensor]()
        for m in modules_of(model):
            numbers = vars(m) if type(m).__module__.startswith("torch.nn.") else {}
            options = {k: v for k, v in numbers.items() if isinstance(v, (bool, int, float, str)) and k[0] != "_"}
            told.append((type(m).__qualname__, m.training, sorted(options.items())))
            held |= {id(b): b for k, b in m.named_buffers(recurse=False) if k != "num_batches_tracked"}
        if isinstance(model, nn.Module):
            held |= {id(p): p for name, p in model.named_parameters() if not p.requires_grad and name not in names}
        dense = [x for x in held.values() if x.layout is torch.strided and not is_sharded(x)]
        return told, [tuple(x.shape) for x in dense], mark_of_bits(dense)

    def check_model(self, model: Any) -> None:
        """Raise for batch norm in training mode, whose outputs depend on the other examples of the process."""
        module = batch_norm_in_training(model)
        if module is not None:
            why = (
                "has no second derivative, and sums over processes once more on its way back"
                if isinstance(module, nn.SyncBatchNorm)
                else "normalises by the examples of one process alone, so that the model is another on each"
            )
            raise ValueError(
                f"lg.distributed.DataParallel: the model has a {type(module).__name__} in training mode, which "
                f"{why}. Use its running statistics (model.eval(), or .eval() of these layers), or GroupNorm or "
                "LayerNorm, which see one example at a time."
            )

    def require_mesh(self, mesh: Any) -> None:
        """Raise unless the processes over which parameters are spread are those that have shares of the data."""
        if mesh in self._meshes:
            return
        if sorted(mesh.mesh.flatten().tolist()) != sorted(dist.get_process_group_ranks(self.group)):
            raise ValueError(
                f"lg.distributed.DataParallel: the parameters are DTensors over {mesh}, and the data are shared out "
                f"over processes {dist.get_process_group_ranks(self.group)}: use a mesh of these processes."
            )
        self._meshes.add(mesh)

    def sum(self, ops: Backend, arrays: Sequence[Tensor], marks: Mapping[str, int] | None = None) -> list[Tensor]:
        if any(map(is_sharded, arrays)):  # summed as they were scattered
            plain = iter(self.sum(ops, rest, marks) if (rest := [x for x in arrays if not is_sharded(x)]) else [])
            return [x if is_sharded(x) else next(plain) for x in arrays]
        if any(x.requires_grad for x in arrays):
            raise NotImplementedError(
                "what is summed over processes has no derivative here: solve with detached parameters, or "
                "differentiate the solve of an objective of all data in one process."
            )
        return super().sum(ops, arrays, marks)

    def all_reduce(self, ops: Backend, x: Tensor) -> Tensor:
        self.finish(lambda: dist.all_reduce(x, group=self.group, async_op=True))
        return x

    def finish(self, begin: Callable[[], Any]) -> None:
        """Have a collective of these processes done, or raise what one of them raised instead of entering it."""
        require_others()
        self.line.enter()
        work = begin()
        begun = time.monotonic()
        while not self._is_done(work):
            self.line.listen()
            if time.monotonic() - begun > self.line.limit + 1.0:
                self.line.lost(f"waited {self.line.limit:.0f} s in vain for the others")

    @contextmanager
    def telling(self) -> Iterator[None]:
        token = sharing.set(self)
        try:
            yield
        except BaseException as error:
            with suppress(Exception):  # what went wrong is what is told
                self.line.tell(error)
            raise
        finally:
            sharing.reset(token)

    @contextmanager
    def aside(self) -> Iterator[None]:
        token = sharing.set(None)
        try:
            yield
        finally:
            sharing.reset(token)

    def _is_done(self, work: Any) -> bool:
        """Whether the collective has ended, within a moment."""
        try:
            if self._waits_in_slices:
                work.wait(timedelta(seconds=_MOMENT))
                return True
            end, pause = time.monotonic() + _MOMENT, 0.0
            while not work.is_completed():  # given a time to wait, NCCL would break the group off
                if time.monotonic() > end:
                    return False
                time.sleep(pause)
                pause = min(1e-3, pause + 1e-5)
            work.wait()
        except RuntimeError as error:
            if not work.is_completed():
                return False
            self.line.listen()
            self.line.lost("lost the others", error)
        return True
