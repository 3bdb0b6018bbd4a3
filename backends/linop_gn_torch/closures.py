"""A closure ``() -> loss`` over a module as a function of the module's parameters.

While the closure runs, the module holds the parameters that are given, and clones of its buffers; afterwards its own
are back. Random numbers are drawn from one seed, so that all evaluations of a step are of one function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .advice import nodes
from .draws import OwnDraws
from .recording import current
from .spread import require_local

__all__ = ["ClosureOf", "closures_explained"]

_ADVICE = (
    "A closure returns the loss with its graph, and calls no backward() and no zero_grad():\n"
    "    def closure():\n"
    "        return loss(model(x), y)"
)

_LISTS = "_flat_weights", "_flat_weight_refs"
"""Where recurrent layers list their parameters, anew when these have changed."""


class ClosureOf:
    """The function ``{name: tensor} -> loss`` that ``closure`` is of the parameters of ``module``.

    >>> import torch
    >>> net, x = torch.nn.Linear(2, 1), torch.ones(1, 2)
    >>> function = ClosureOf(net, lambda: net(x).sum(), 0)
    >>> function({"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
    tensor(2.)
    """

    def __init__(self, module: nn.Module, closure: Callable[[], Any], seed: int) -> None:
        for name, m in module.named_modules():
            require_local(m, f"{name or 'the model'}, of which a closure gives no sums over processes: step on a batch")
        self.module, self.closure, self.seed = module, closure, seed
        self._draws: bool | None = None

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor:
        own = dict(self.module.named_parameters(remove_duplicate=False))
        given = {id(own[name]): tensor for name, tensor in params.items()}
        given |= {id(b): b.clone() for b in self.module.buffers()}
        with _holding(self.module, given):
            if self._draws is False:
                loss = self.closure()
            else:
                forbidden = {id(own[name]) for name in params}
                with OwnDraws(self.seed, forbidden) as draws:
                    loss = self.closure()
                self._draws = draws.drew
        recording = current.get()
        if recording is not None and recording.has_hooks:
            raise NotImplementedError(
                "the closure's model runs parts of its forward again on the way back (checkpointing), when the module "
                "has its own parameters again: give the optimiser a loss, and step on a batch, step((x, y))."
            )
        if not isinstance(loss, Tensor):
            raise TypeError(f"the closure returned a {type(loss).__qualname__}, not the loss as a tensor. {_ADVICE}")
        if recording is not None and not _reaches(loss, params.values()):
            raise ValueError(f"the loss that the closure returned depends on no parameter of the optimiser. {_ADVICE}")
        return loss


def _reaches(loss: Tensor, params: Iterable[Tensor]) -> bool:
    """Whether any of the parameters is in the graph of the loss: those of another model may be."""
    leaves, made = {id(p) for p in params}, {p.grad_fn for p in params} - {None}
    return any(node in made or id(getattr(node, "variable", None)) in leaves for node in nodes(loss))


@contextmanager
def closures_explained() -> Iterator[None]:
    """Say what a closure is where it is none that the method can take."""
    try:
        yield
    except ValueError as error:
        if "the model and the loss apart" in str(error):
            raise ValueError(
                "this method's curvature needs the model and the loss apart, which a closure does not tell: give the "
                "optimiser a loss, and step((x, y)) (in Lightning with automatic_optimization = False)."
            ) from error
        raise
    except RuntimeError as error:
        if any(words in str(error) for words in ("a second time", "does not require grad")):
            raise RuntimeError(
                f"the closure went backward through its graph, which products need. {_ADVICE}"
            ) from error
        raise


@contextmanager
def _holding(module: nn.Module, given: Mapping[int, Tensor]) -> Iterator[None]:
    """The modules in ``module`` with ``given`` in place of parameters and buffers of these ids."""
    modules = list(module.modules())
    held: list[Any] = [table for m in modules for table in (m._parameters, m._buffers)]
    tables = [(table, {k: given[id(t)] for k, t in table.items() if id(t) in given}) for table in held]
    listed = [(vars(m), {k: v for k, v in vars(m).items() if k in _LISTS}) for m in modules]
    before = [(table, {key: table[key] for key in new}) for table, new in tables]
    try:
        _put(tables)
        yield
    finally:
        _put(before + listed)


def _put(tables: list[tuple[Any, dict[Any, Any]]]) -> None:
    for table, new in tables:
        for key, tensor in new.items():
            table[key] = tensor
