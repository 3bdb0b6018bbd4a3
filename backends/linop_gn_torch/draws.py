"""Random numbers that are the same at every evaluation, from generators of our own.

Below autograd every operation that draws is marked as such, so none is missed:
``F.dropout`` and one's own noise draw as layers do. The generators of the
process, which other threads draw from, are not touched.

Torch hides such a mode from its compiler, and imports that for it: five seconds, at the first evaluation of any model.
So it is hidden only where the compiler has been imported, as only then a model can be compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OwnDraws", "fixed_draws", "states"]

_aten = torch.ops.aten


def states(devices: list[int]) -> list[Tensor]:
    """The states of the process's generators: of the CPU and of these CUDA devices."""
    return [torch.default_generator.get_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


@contextmanager
def fixed_draws(devices: list[int], seed: int) -> Iterator[None]:
    """Inside, the process's generators start from ``seed``; afterwards they are as before. Not for several threads.

    >>> with fixed_draws([], 3):
    ...     first = torch.rand(2)
    >>> with fixed_draws([], 3):
    ...     bool((torch.rand(2) == first).all())
    True
    """
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


class OwnDraws(TorchDispatchMode):
    """Inside, operations of this thread draw from generators that start from ``seed``; ``drew`` tells whether any did.

    ``forbidden`` are ids of parameters that no operation may take.

    >>> state = torch.get_rng_state()
    >>> with OwnDraws(3):
    ...     first = torch.rand(2)
    >>> with OwnDraws(3) as draws:
    ...     bool((torch.rand(2) == first).all()), draws.drew
    (True, True)
    >>> torch.equal(state, torch.get_rng_state())
    True
    """

    def __new__(cls, *_: Any) -> OwnDraws:
        return super().__new__(_Hidden if "torch._dynamo" in sys.modules else cls)

    def __init__(self, seed: int, forbidden: Set[int] = frozenset()) -> None:
        super().__init__()
        self.seed, self.forbidden = seed, forbidden
        self.drew = False
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        for x in args:
            if isinstance(x, nn.Parameter) and id(x) in self.forbidden:
                raise RuntimeError(
                    f"the model's forward uses a parameter (shape {tuple(x.shape)}) through an object or a global that "
                    "holds the module, where no other value can be given for it. Reach parameters through self."
                )
        if torch.Tag.nondeterministic_seeded not in function.tags or given.get("generator") is not None:
            return function(*args, **given)
        self.drew = True
        generator = self._generator(args, given)
        if function is _aten.native_dropout.default:
            x, p, train = args
            survivors = torch.empty_like(x).bernoulli_(1 - p if train is not False else 1.0, generator=generator)
            return x * survivors / (1 - p if train is not False and p < 1 else 1.0), survivors.bool()
        overload = _with_generator(function)
        if overload is not None:
            return overload(*args, **given, generator=generator)
        devices = [generator.device.index] if generator.device.type == "cuda" else []
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        with fixed_draws(devices, seed):  # an operation that takes no generator
            return function(*args, **given)

    def _generator(self, args: tuple[Any, ...], given: dict[str, Any]) -> torch.Generator:
        tensors = [x.device for x in args if isinstance(x, Tensor)]
        asked = given.get("device") or (tensors[0] if tensors else "cpu")
        device = torch.empty(0, device=asked).device  # "cuda" as "cuda:0"
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Hidden(OwnDraws):
    """The same, which ``torch.compile`` does not look into."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return super().__torch_dispatch__(function, types, args, kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True


def _with_generator(function: Any) -> Any:
    """The overload of an operation that takes a generator, None where there is none."""
    if any(a.name == "generator" for a in function._schema.arguments):
        return function
    packet, name = function.overloadpacket, function._overloadname
    wanted = "generator" if name == "default" else f"{name}_generator"
    return next((getattr(packet, n) for n in (wanted, "low_generator_dtype") if n in packet.overloads()), None)
