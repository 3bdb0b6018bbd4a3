"""What an architecture of the zoo is: a model as its authors write it, a batch of data, and a loss.

A family is a dictionary from names to functions without arguments, which build a :class:`Case`: nothing is made, and
no library imported, before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

__all__ = ["FAMILIES", "LOSSES", "Case", "Family", "made", "names", "stirred"]

LOSSES = ("classes", "squares", "yes or no", "counts")
"""Cross-entropy, half the squares, binary cross-entropy, and Poisson's."""


class Case(NamedTuple):
    """A model of torch (a module) or of JAX (a function of parameters and inputs) with data and a loss."""

    model: Any
    inputs: Any
    targets: Any
    loss: str | Callable[[Any, Any], Any] = "classes"
    """One of :data:`LOSSES`, or a function of outputs and targets with a number for each example."""
    params: Any = None
    """The start, for JAX; a module of torch has its own."""
    eps: float = 2.0**-52
    """The rounding of the model: that of float32 where its authors cast to it whatever they are given."""
    residuals: Callable[[Any], Any] | None = None
    """In place of model and loss: residuals of the parameters."""
    surrogate: bool = False
    """Whether what the framework gives for its gradient is meant to be none, as with a straight-through estimator."""
    refused: str | None = None
    """What the error says, as a pattern, where the architecture is refused."""


class Family(NamedTuple):
    """Architectures of one kind."""

    title: str
    module: str
    """The file in this folder that has ``CASES``."""
    needs: tuple[str, ...]
    """The libraries that have to be there."""


FAMILIES = (
    Family("torchvision", "torchvision_nets", ("torch", "torchvision")),
    Family("Hugging Face's transformers", "transformers_nets", ("torch", "torchvision", "transformers")),
    Family("Recurrent networks and state spaces", "recurrent", ("torch",)),
    Family("Attention", "attention", ("torch",)),
    Family("Images and signals", "images", ("torch",)),
    Family("Graphs and sets", "graphs", ("torch",)),
    Family("Densities and generators", "densities", ("torch",)),
    Family("Physics, implicit layers and layers with a norm", "physics", ("torch",)),
    Family("Asked in vain", "refused", ("torch",)),
    Family("JAX, plain functions", "jax_nets", ("jax",)),
    Family("flax linen", "linen_nets", ("jax", "flax")),
    Family("flax nnx", "nnx_nets", ("jax", "flax")),
    Family("equinox", "equinox_nets", ("jax", "equinox")),
)


def names(family: Family) -> dict[str, Callable[[], Case]]:
    """The architectures of a family, by name; ImportError where its libraries are missing."""
    for library in family.needs:
        load(library)
    cases: dict[str, Callable[[], Case]] = import_module(f".{family.module}", __package__).CASES
    return cases


def stirred(model: Any) -> Any:
    """A module of torch away from its start, at which norms are ones and zeros, and some tokens all zeros."""
    torch = import_module("torch")
    with torch.no_grad():
        for p in model.parameters():
            size = p.square().mean().sqrt().clamp(min=0.1)
            p.add_(0.2 * size * torch.randn(p.shape).to(p.dtype))
    return model


def load(library: str) -> Any:
    """The library; torchvision also where its wheel for CUDA lies beside torch for the CPU, without compiled parts."""
    try:
        return import_module(library)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"  # of detectors, which are not tried
        for operation in ("nms", "qnms"):
            import_module("torch").library.define(f"torchvision::{operation}", signature)
        return import_module(library)


@contextmanager
def made(family: Family, name: str) -> Iterator[Case]:
    """An architecture in double precision, which is the framework's own choice inside of this context."""
    build = names(family)[name]
    if "jax" in family.needs:
        with import_module("jax").enable_x64(True):
            yield build()
        return
    torch = import_module("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    try:
        yield build()
    finally:
        torch.set_default_dtype(before)
