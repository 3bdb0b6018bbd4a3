"""The states of random generators, so that what is drawn after a run was killed is what would have been drawn.

The generators of a process are Python's ``random`` and those that each imported framework names
(NumPy's legacy one, torch's of the CPU and of each CUDA device). Others are handed over.
JAX's keys are data of the user's, and no state of anything.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..dispatch import backend_of, imported

__all__ = ["Generators"]


class Generators:
    """The process's generators, and those ``given``: ``np.random.Generator``, ``torch.Generator``, ``random.Random``.

    >>> rng = np.random.default_rng(0)
    >>> generators = Generators([rng])
    >>> states = generators.states()
    >>> drawn = rng.random(), random.random(), np.random.random()
    >>> generators.put_back(states)
    >>> drawn == (rng.random(), random.random(), np.random.random())
    True
    """

    def __init__(self, given: Iterable[Any] = ()) -> None:
        self.given = list(given) if isinstance(given, Iterable) else [given]
        for generator in self.given:
            if not any(hasattr(generator, name) for name in ("getstate", "get_state", "bit_generator")):
                raise TypeError(
                    "generators= takes np.random.Generator, torch.Generator and random.Random, got a "
                    f"{type(generator).__qualname__}."
                )

    def _process(self) -> dict[str, list[Any]]:
        return {"random": [random], **{ops.name: list(ops.generators()) for ops in imported()}}

    def states(self) -> dict[str, Any]:
        """Trees of arrays, numbers and text."""
        process = {name: list(map(_state, of)) for name, of in self._process().items()}
        return {"process": process, "given": list(map(_state, self.given))}

    def put_back(self, states: dict[str, Any]) -> None:
        """Put all generators into these states; a framework that is not there now is passed over."""
        if len(states["given"]) != len(self.given):
            raise ValueError(
                f"the state was written with {len(states['given'])} generators, and generators= has {len(self.given)}: "
                "give the same, in their order."
            )
        pairs = [*zip(self.given, states["given"], strict=True)]
        for name, generators in self._process().items():
            pairs += zip(generators, states["process"].get(name, ()), strict=False)
        for generator, state in pairs:
            _put(generator, state)


def _state(generator: Any) -> Any:
    if hasattr(generator, "getstate"):
        version, numbers, spare = generator.getstate()
        return [version, np.asarray(numbers, np.uint32), spare]
    if hasattr(generator, "get_state"):
        state = generator.get_state()
        return state if isinstance(state, (tuple, dict)) else backend_of(state).to_numpy(state)
    return generator.bit_generator.state


def _put(generator: Any, state: Any) -> None:
    if hasattr(generator, "setstate"):
        version, numbers, spare = state
        generator.setstate((version, tuple(numbers.tolist()), spare))
    elif hasattr(generator, "set_state"):
        now = generator.get_state()
        theirs = isinstance(now, (tuple, dict))
        generator.set_state(state if theirs else backend_of(now).asarray(state, "uint8", "cpu"))
    else:
        generator.bit_generator.state = state
