"""Errors about derivatives that say what is in the way and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from linop_gn.distributed import OtherProcessError

from .alone import ALONE, Alone
from .tracking import tracking

__all__ = ["custom_functions", "explained", "nodes", "require_differentiable", "require_linear", "snapshot"]
__all__ += ["unwritten", "written"]


def snapshot(params: Sequence[Tensor]) -> list[Tensor]:
    """The parameters as leaves of a new graph, without copying them; as they are where products are recorded."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("torch.inference_mode() records no derivatives: use torch.no_grad(), or leave that block.")
    for i, p in enumerate(params):
        if p.is_inference():
            raise RuntimeError(
                f"parameter {i} (shape {tuple(p.shape)}) was made inside torch.inference_mode() and cannot be "
                "differentiated: clone() it outside."
            )
        if not p.is_floating_point():
            raise TypeError(f"parameter {i} is {p.dtype}: only real floating-point tensors can be differentiated.")
    if tracking.get():
        return [p if p.requires_grad else p.detach().requires_grad_() for p in params]
    return [p.detach().requires_grad_() for p in params]


@contextmanager
def unwritten(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Refuse a model that writes to its parameters inside, of whatever it then computes."""
    before = [leaf._version for leaf in leaves]
    yield
    changed = [i for i, (leaf, version) in enumerate(zip(leaves, before, strict=True)) if leaf._version != version]
    if changed:
        raise written(changed[0], leaves[changed[0]].shape)


def written(parameter: int, shape: Sequence[int]) -> ValueError:
    """The error for a model that writes to one of its parameters."""
    return ValueError(
        f"the model writes to parameter {parameter} (shape {tuple(shape)}) as it runs, so that no derivative "
        "belongs to it: an operation in place under no_grad(), or an embedding's max_norm=. Write to a copy, or "
        "between steps."
    )


def require_differentiable(outputs: Any, scalar: bool = False) -> None:
    """Refuse what is not one real floating-point tensor (with one entry, for a scalar function)."""
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the function returned a {type(outputs).__qualname__}, not one tensor: return the entry that matters, "
            "such as outputs[0] or outputs.logits."
        )
    if not outputs.is_floating_point():
        raise TypeError(
            f"the function returned {outputs.dtype}: derivatives need real floating-point outputs (of complex ones by "
            "lg.as_real, or torch.view_as_real; return scores rather than an argmax)."
        )
    if scalar and outputs.numel() != 1:
        raise ValueError(f"a scalar function is needed here, not outputs of shape {tuple(outputs.shape)}: reduce them.")


def custom_functions(outputs: Tensor) -> list[str]:
    """Names of the custom autograd Functions in the graph of ``outputs`` (about 1 microsecond a node)."""
    own = f"{__package__}.convolution", f"{__package__}.wholes"
    functions = [getattr(node, "_forward_cls", None) for node in nodes(outputs)]
    return sorted({f.__qualname__ for f in functions if f is not None and f.__module__ not in own})


def nodes(outputs: Tensor, known: Iterable[Any] = ()) -> Iterator[Any]:
    """The nodes of the graph of ``outputs``, without those ``known`` and what is reached through them alone."""
    todo, seen = [outputs.grad_fn], {None, *known}
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo += [following for following, _ in node.next_functions]


def require_linear(
    recorded: Sequence[Tensor | None], cotangent: Tensor, custom: Sequence[str], way: Alone = ALONE
) -> None:
    """Refuse a recorded ``J^T u`` that is not linear in u: somewhere a backward has lost its graph.

    Unnoticed, products would lack what goes through it, or be zeros. What a linear function of u gives must be its
    derivative along u, so one backward tells: ``<d(J^T u)/du . v, u> = <J^T u, v>``, here for ``v = J^T u``. That is
    done where there are Functions that somebody wrote. The processes on the ``way`` to which leaves lie do it together.
    """
    graphs = {i: r for i, r in enumerate(recorded) if r is not None and r.requires_grad}
    lost = any(bool(r.detach().any()) for r in recorded if r is not None and not r.requires_grad)
    lost, probed = way.any(lost, bool(custom and graphs))
    if probed and not lost:
        values, tangent = [r.detach() for r in graphs.values()], torch.zeros_like(cotangent)
        way.follow(list(graphs), values)
        if graphs:
            options = {"retain_graph": True, "materialize_grads": True}
            (tangent,) = torch.autograd.grad(list(graphs.values()), cotangent, values, **options)
        expected = sum(
            float((v.double() * w).sum()) for v, w in zip(values, way.summed(values, list(graphs)), strict=True)
        )
        found = float((tangent.double() * cotangent.detach().double()).sum())
        (expected,), (found,) = way.totals([expected], [found])
        lost = abs(found - expected) > 1e-2 * expected
    if lost:
        names = f" ({', '.join(custom)})" if custom else ""
        raise NotImplementedError(
            f"the gradient of this model is computed, but not recorded, by a custom autograd.Function"
            f"{names}: its backward is marked @once_differentiable, leaves torch, or detaches. Write it in "
            "differentiable torch operations on its arguments and ctx.saved_tensors."
        )


REENTRANT = (
    "reentrant checkpointing hides parameters from the graph, and cannot be differentiated twice: call "
    "torch.utils.checkpoint.checkpoint with use_reentrant=False."
)
_ADVICE: tuple[tuple[str, type[Exception], str], ...] = (
    (
        r"Can't call numpy\(\) on Tensor that requires grad",
        TypeError,
        "the model calls a function of NumPy on tensors, as np.exp(p): write it with torch's, as torch.exp, or with "
        "those of lg.namespace(params), which are the arrays' own in every framework.",
    ),
    (
        r"derivative for '?(?:aten::)?(\w+)'? is not implemented",
        NotImplementedError,
        "the model uses an operation whose backward, {1}, has no derivative in torch, and curvature products "
        "differentiate the backward pass: write it in the model with ordinary torch operations (for attention, call "
        "torch.nn.functional.scaled_dot_product_attention, whose kernel is then chosen here).",
    ),
    (
        r"FlexAttention|flex_attention",
        NotImplementedError,
        "the model calls flex_attention, which has no double backward, and on the CPU none at all: call "
        "torch.nn.functional.scaled_dot_product_attention, with what is added to the scores as its attn_mask.",
    ),
    (
        r"same dtype|scalar type \w+ but found|type \(.*\) should be the same|share same datatype",
        RuntimeError,
        "the model met tensors of two dtypes ({0}): data made from NumPy are float64, parameters float32, unless told "
        "otherwise. Convert one of them: inputs.float(), or module.double(); beside parameters in half precision, "
        "inputs.bfloat16().",
    ),
    (
        r"does not currently support double backward",
        NotImplementedError,
        "a part of the model is compiled by torch.compile, which has no double backward: pass the model uncompiled "
        "(compiled.module._orig_mod), and compile the solver's other parts if need be.",
    ),
    (
        r"use_reentrant|Checkpointing is not compatible with \.grad\(\)",
        NotImplementedError,
        REENTRANT,
    ),
    (
        r"Inference tensors cannot be saved for backward",
        RuntimeError,
        "the inputs or the model hold tensors made inside torch.inference_mode(): clone() them outside of it.",
    ),
    (
        r"modified by an inplace operation",
        RuntimeError,
        "parameters, data or activations were changed in place after the model was linearised (an optimizer's step, an "
        "in-place layer): build the operator anew after changing parameters, or give it copies.",
    ),
)
"""What torch's message has in it, what kind of error that is, and what to do about it."""


class explained:  # noqa: N801  # a generator would take three times as long to enter, at each product
    """Turn torch's errors about missing second derivatives, and about mixed dtypes, into advice."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: Any) -> None:
        if isinstance(error, RuntimeError) and not isinstance(error, OtherProcessError):
            for sign, wanted, advice in _ADVICE:
                if found := re.search(sign, str(error)):
                    raise wanted(advice.format(error, *found.groups())) from error
