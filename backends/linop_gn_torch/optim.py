"""Methods of linop_gn as optimisers of torch: any :class:`linop_gn.Method` behind ``torch.optim.Optimizer``.

A method needs to know how the loss depends on the parameters, so that an optimiser is made of the module and the loss,
and a step of it takes a batch, where torch's take gradients:

>>> import torch
>>> from linop_gn_torch.optim import LevenbergMarquardt
>>> _ = torch.manual_seed(0)
>>> x = torch.randn(64, 3)
>>> y = torch.sin(x.sum(1, keepdim=True))
>>> net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
>>> opt = LevenbergMarquardt(net, torch.nn.MSELoss())
>>> losses = [float(opt.step((x, y))) for _ in range(20)]
>>> losses[-1] < 0.05 * losses[0]
True

The module's parameters are written over in place. What a method keeps is one :class:`linop_gn.State`, which goes on
from batch to batch as in ``lg.minimize(..., batches=)``, and whose bits are in ``state_dict()``.
"""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from copy import copy
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

import linop_gn as lg
from linop_gn.records import replace
from linop_gn.run.solution import Result
from linop_gn.spaces import Space

from .closures import ClosureOf, closures_explained
from .draws import fixed_draws
from .hugging_face import IGNORED, inputs_and_labels, predicts_next
from .modules import AdaptedModule, adapt, uncompiled
from .spread import unwrapped

__all__ = ["KFAC", "SGN", "GaussNewton", "HessianFree", "LevenbergMarquardt", "NewtonCG", "Optimizer", "TrustRegion"]

Params = str | Iterable[Any] | None


class Optimizer(torch.optim.Optimizer):
    """``method`` as an optimiser of torch, of the parameters of ``model``.

    Parameters
    ----------
    model
        An ``nn.Module``, also a ``DistributedDataParallel`` one (then each process steps on its share of the batch), or
        a compiled one, which is used uncompiled.
    method
        Any :class:`linop_gn.Method`: ``lg.SecondOrder(...)``, ``lg.FirstOrder(...)``, one of your own.
    loss
        As of :class:`linop_gn.Objective`: of ``lg.losses``, a loss module of torch, or a callable. None where every
        step takes a closure, or batches are dicts with ``labels``, as of Hugging Face's models: the loss is then the
        model's own, the cross-entropy of its logits with labels that are not -100, which the first batch verifies.
    params
        What torch's optimisers take: parameters, pairs ``(name, parameter)``, or groups as dicts; or a shell pattern of
        names, such as ``"*lora_*"``. All of them belong to ``model``. None: those that require gradients now. One that
        requires none is left alone while that is so.
    lr
        Of a group, for schedulers: its parameters go ``lr`` times the way of the method's step. At 1, the default, the
        step is the method's own, to the last bit. The method judges its whole step; ``lr`` shortens what it has found.
    weight_decay
        Of a group, as in ``torch.optim.SGD``: 1/2 ``weight_decay`` ||p||^2 is a part of the objective, in value,
        gradient and curvature. (What a method's own ``weight_decay=`` is, AdamW's, goes into ``method``.)
    seed
        Step number i draws random numbers, such as dropout's, from ``seed + i``: the same at all its evaluations.

    >>> import torch, linop_gn as lg
    >>> net = torch.nn.Linear(2, 1)
    >>> opt = Optimizer(net, lg.FirstOrder(lg.optimisers.Adam(), rate=0.1), torch.nn.MSELoss())
    >>> opt.step((torch.ones(4, 2), torch.zeros(4, 1))).shape
    torch.Size([])

    Raises
    ------
    TypeError, ValueError
        For parameters that are not the model's, patterns that match none, and a ``model`` that is no module.
    """

    _adapted: Any = None
    _options: ClassVar[frozenset[str]] = frozenset()
    """What the method is made with, which groups do not have."""

    def __init__(
        self,
        model: nn.Module,
        method: Any,
        loss: Any = None,
        params: Params = None,
        *,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            name, what = type(self).__name__, "method, loss" if type(self) is Optimizer else "loss"
            raise TypeError(
                f"{name} takes the module itself, got a {type(model).__qualname__}: parameters alone do not tell how "
                f"the loss depends on them. Write {name}(model, {what}), and choose with params=."
            )
        if not isinstance(method, lg.Method):
            raise TypeError(f"{type(self).__name__}: method must be an lg.Method, got a {type(method).__qualname__}.")
        self.model, self.method, self.loss, self.seed = model, method, loss, seed
        self.last: Result | None = None
        """The :class:`linop_gn.Result` of the latest step: status, value after it, damping, gain ratio, products."""
        self.steps = 0
        self._state: lg.State | None = None
        self._saved: bytes | None = None
        self._collected: list[Any] = []
        self._shifted: bool | None = None
        super().__init__(self._chosen(params), {"lr": lr, "weight_decay": weight_decay})

    # parameters

    @property
    def _inside(self) -> nn.Module:
        """The module itself, where it is wrapped or compiled."""
        return uncompiled(unwrapped(self.model)[0])

    def _names(self) -> dict[int, str]:
        """The names of the module's parameters, by identity; of tied ones the first."""
        return {id(p): name for name, p in self._inside.named_parameters()}

    def _chosen(self, params: Params) -> Any:
        if params is None or isinstance(params, str):
            named = dict(self._inside.named_parameters())
            pattern = "*" if params is None else params
            found = [(n, p) for n, p in named.items() if p.requires_grad and fnmatchcase(n, pattern)]
            if not found:
                raise ValueError(
                    f"{type(self).__name__}: no parameter that requires gradients has a name like {pattern!r}; the "
                    f"model has {', '.join(list(named)[:8])}{', ...' if len(named) > 8 else ''}."
                )
            return found
        return params

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. The run begins anew at the next step: its vectors have other entries."""
        if isinstance(param_group, dict):
            for name in ("lr", "weight_decay"):
                number = float(param_group.get(name, self.defaults[name]))
                if not 0.0 <= number < math.inf:
                    raise ValueError(f"{type(self).__name__}: {name} must be finite and not negative, got {number}.")
            own = set(param_group) & self._options
            if own:
                raise ValueError(
                    f"{type(self).__name__}: {', '.join(sorted(own))} of a group: groups have lr and weight_decay; "
                    "what the method is made with goes for all parameters, as a keyword beside model and loss."
                )
        super().add_param_group(param_group)
        names = self._names()
        if any(id(p) not in names for p in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise ValueError(
                f"{type(self).__name__}: a parameter of the group is none of the model's: give parameters of the "
                "module that the optimiser was made with, as it is now."
            )

    def _moved(self) -> dict[str, tuple[Tensor, dict[str, Any]]]:
        """The parameters that a step moves, by name in the module's order, each with its group."""
        found = {id(p): (p, group) for group in self.param_groups for p in group["params"] if p.requires_grad}
        moved = {name: found[i] for i, name in self._names().items() if i in found}
        if len(moved) != len(found):
            raise ValueError(
                f"{type(self).__name__}: {len(found) - len(moved)} of its parameters are no longer the model's: make "
                "a new optimiser after replacing parameters."
            )
        if not moved:
            raise ValueError(f"{type(self).__name__}: none of its parameters requires gradients.")
        return moved

    # stepping

    def collect(self, batch: Any) -> None:
        """Keep a batch for the next ``step()``, which is on all that were collected: gradient accumulation."""
        self._collected.append(batch)

    @torch.no_grad()
    def step(self, batch: Any = None, closure: Any = None) -> Tensor:  # type: ignore[override]
        """One step of the method; returns the objective *before* it, as a 0-d tensor. ``last`` tells the rest.

        Parameters
        ----------
        batch
            What ``lg.minimize(batches=[...])`` takes: ``(inputs, targets)``, with weights as a third, as a DataLoader
            gives them; a list of such minibatches; an ``lg.StepData``; a dict with ``labels``, as Hugging Face's
            models take them. Or a closure, as below. Without it the step is on what was collected.
        closure
            A function that returns the loss with its graph, for methods whose curvature is the Hessian. It calls no
            ``backward()``. Not looked at beside a batch.
        """
        if callable(batch):
            batch, closure = None, batch
        if batch is None and self._collected:
            batch = self._collected if len(self._collected) > 1 else self._collected[0]
            self._collected = []
        if batch is None and closure is None:
            raise TypeError(
                f"{type(self).__name__}.step takes a batch, step((x, y)), and evaluates the model itself (backward() "
                "is not needed); or a closure that returns the loss, for methods of the Hessian; or what "
                "collect(batch) has kept."
            )
        moved = self._moved()
        before = {name: p.detach().clone() for name, (p, _) in moved.items()}
        objective, data, statistics = self._objective(batch, closure, moved)
        with torch.enable_grad(), closures_explained() if batch is None else nullcontext():
            state = self._gone_on(objective, before)
            result = lg.minimize(objective, before, self.method, state=state, batches=[data])
        cuda = {p.device.index for p, _ in moved.values() if p.device.type == "cuda"}
        with fixed_draws(sorted(cuda), self.seed + self.steps):
            statistics()
        self.steps += 1
        bare = copy(result.state)  # without operators, whose graphs would be kept until the next step
        self.last = replace(result, state=bare)
        first = next(iter(before.values()))
        loss = torch.tensor(result.history["value"][0], dtype=first.dtype, device=first.device)
        if result.status in (lg.Status.NONFINITE, lg.Status.NONFINITE_INPUT):
            return loss
        self._state = bare
        for name, (p, group) in moved.items():
            lr, target = float(group["lr"]), result.params[name]
            p.copy_(target if lr == 1.0 else torch.lerp(before[name], target, lr))
        return loss

    def _objective(self, batch: Any, closure: Any, moved: Mapping[str, Any]) -> tuple[Any, Any, Callable[[], None]]:
        """The objective, the data of the step, and what brings running statistics up to date."""
        inside, seed = self._inside, self.seed + self.steps
        decays = {name: float(group["weight_decay"]) for name, (_, group) in moved.items()}
        l2 = decays if any(decays.values()) else None
        running = any(isinstance(m, _NormBase) and m.training and m.track_running_stats for m in inside.modules())
        if batch is None:
            function = ClosureOf(self.model, closure, seed)
            return lg.Objective.from_function(function, l2=l2), None, closure if running else _nothing
        model: Any = adapt(inside, list(moved))
        self._adapted = model  # the same one comes again while somebody holds it
        if isinstance(model, AdaptedModule) and inside.training:
            model = model.drawing(seed)
        data, loss = self._plain(batch), self.loss
        if loss is None:
            if data is batch:
                raise TypeError(f"{type(self).__name__}: a step on a batch needs a loss: give one when it is made.")
            loss = lg.losses.CrossEntropy(ignore_index=IGNORED)
        first = data.gradient if isinstance(data, lg.StepData) else data
        objective = lg.Objective(model, loss, first, l2=l2)
        _, group = unwrapped(self.model)
        if group is not None:
            objective = lg.distributed.DataParallel(objective, group)

        def statistics() -> None:
            for minibatch in objective.batches:
                args, kwargs = model.arguments(minibatch.inputs)
                inside(*args, **kwargs)

        return objective, data, statistics if running else _nothing

    def _plain(self, batch: Any) -> Any:
        """A batch with pairs in place of dicts with labels."""
        if isinstance(batch, lg.StepData):
            parts = {name: getattr(batch, name) for name in ("gradient", "curvature", "acceptance")}
            made = {name: self._plain(part) for name, part in parts.items()}
            return batch if all(made[name] is part for name, part in parts.items()) else lg.StepData(**made)
        if isinstance(batch, Mapping):
            if self._shifted is None:
                self._shifted = self.loss is None and predicts_next(self._inside, batch)
            return inputs_and_labels(batch, self._shifted)
        if isinstance(batch, list) and any(isinstance(part, Mapping) and "labels" in part for part in batch):
            return [self._plain(part) for part in batch]
        return batch

    def _gone_on(self, objective: Any, params: dict[str, Tensor]) -> lg.State | None:
        """The state to go on from, at ``params``, whatever has been done to these; None to begin."""
        space, state = Space.of(params), self._state
        if state is not None and state.space != space:
            alike = all(getattr(state.space, f) == getattr(space, f) for f in ("names", "shapes", "dtypes"))
            self._state, self._saved = None, _written(state) if alike else None  # elsewhere, or other parameters
        if self._saved is not None:
            file = io.BytesIO(self._saved)
            file.name = "state_dict()"  # type: ignore[attr-defined]
            state = lg.load_state(file, self.method, objective, params, generators=None)
            self._state, self._saved = state, None
        state = self._state
        if state is None:
            return None
        known = state.params
        if all(torch.equal(known[name], p) for name, p in params.items()):
            return state
        return replace(state, own=state.own._replace(x=space.pack(params)))

    # states

    def state_dict(self) -> dict[str, Any]:
        """As of torch, and ``run``, the bits of the method's state (uint8). ``torch.save`` keeps it, without pickles.

        The parameters are the model's, whose own ``state_dict`` goes with it.
        """
        saved = self._saved if self._state is None else _written(self._state)
        run = torch.frombuffer(bytearray(saved), dtype=torch.uint8) if saved else torch.empty(0, dtype=torch.uint8)
        return super().state_dict() | {"run": run, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the optimiser whose ``state_dict()`` this is: the same steps, bit for bit, on the same batches.

        What the method was made with, and names, shapes and dtypes of the parameters, have to be the same: the next
        step raises a ``ValueError`` that names what is not.
        """
        if "run" not in state_dict:
            raise ValueError(
                f"{type(self).__name__}: the state_dict is of another kind of optimiser: it has no 'run', only "
                f"{sorted(state_dict)}."
            )
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self._state, self._saved = None, state_dict["run"].cpu().numpy().tobytes() or None
        self.steps, self.last = int(state_dict["steps"]), None

    def __getstate__(self) -> dict[str, Any]:
        own = "model", "method", "loss", "seed", "last", "steps", "_state", "_saved", "_collected", "_shifted"
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by ``torch.amp.GradScaler``."""
        raise TypeError(
            f"{type(self).__name__} takes no GradScaler, which scales the gradients of backward(): there is none here. "
            "Call step(batch) itself, with parameters in float32 or bfloat16."
        )


def _written(state: lg.State) -> bytes:
    file = io.BytesIO()
    lg.save_state(file, state, generators=None)
    return file.getvalue()


def _nothing() -> None:
    pass


class _Named(Optimizer):
    """A named method, whose own arguments come by keyword."""

    recipe: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        cls._options = frozenset(inspect.signature(cls.recipe).parameters) - {"lr", "weight_decay", "options"}

    def __init__(
        self,
        model: nn.Module,
        loss: Any = None,
        params: Params = None,
        *,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        method = type(self).recipe(**options)
        super().__init__(model, method, loss, params, lr=lr, weight_decay=weight_decay, seed=seed)


class LevenbergMarquardt(_Named):
    """:func:`linop_gn.LevenbergMarquardt`: ``LevenbergMarquardt(model, loss, damping=1.0, solver=lg.CG(...))``."""

    recipe = staticmethod(lg.LevenbergMarquardt)


class GaussNewton(_Named):
    """:func:`linop_gn.GaussNewton`; ``solver=lg.CG(preconditioner=lg.preconditioners.KFAC())`` goes by K-FAC."""

    recipe = staticmethod(lg.GaussNewton)


class SGN(_Named):
    """:func:`linop_gn.SGN`, the stochastic Gauss-Newton method of Gargiani and others."""

    recipe = staticmethod(lg.SGN)


class HessianFree(_Named):
    """:func:`linop_gn.HessianFree`, after Martens."""

    recipe = staticmethod(lg.HessianFree)


class TrustRegion(_Named):
    """:func:`linop_gn.TrustRegion` on the Hessian: takes batches, with a loss, or closures."""

    recipe = staticmethod(lg.TrustRegion)


class NewtonCG(_Named):
    """:func:`linop_gn.NewtonCG` on the Hessian: takes batches, with a loss, or closures."""

    recipe = staticmethod(lg.NewtonCG)


def _kfac(damping: float = 1e-2, decay: float | None = None, **options: Any) -> Any:
    recipe = lg.preconditioners.KFAC() if decay is None else lg.preconditioners.KFAC(decay=decay)
    return lg.GaussNewton(damping, lg.CG(rtol=1e-3, max_steps=10, preconditioner=recipe), curvature=lg.KFAC, **options)


class KFAC(_Named):
    """K-FAC (Martens and Grosse, 2015) with Armijo's rule: Gauss-Newton on Kronecker factors, by their exact inverse.

    ``damping`` is constant, 0.01 by default; ``decay`` averages the factors over steps.
    """

    recipe = staticmethod(_kfac)
