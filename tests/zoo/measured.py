"""One architecture held against its oracle: value, gradient, Gauss-Newton and Hessian products, and a damped step.

    G v       against J^T (H_L (J v)), with J by rows of plain reverse mode and H_L dense
    H v       against differences of plain gradients, extrapolated
    gradient  against plain reverse mode; that against differences of the loss
    step      (G + lambda I)^-1 g by CG, against Woodbury's formula on J and H_L; MINRES where H_L is indefinite
    blocks    B v, layer by layer, against the same J with each layer by itself

Errors are relative, leaf by leaf: a leaf whose part is small beside the whole counts with a thousandth of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

import linop_gn as lg
from linop_gn.validation.differences import Derivative, along

from .cases import Case
from .plain import Array, JaxPlain, TorchPlain

__all__ = ["TOLERANCES", "faults", "measure"]

TOLERANCES = {
    2.0**-52: {"value": 1e-12, "gradient": 1e-9, "GGN": 1e-9, "blocks": 1e-9, "Hessian": 1e-6, "step": 1e-7},
    2.0**-23: {"value": 1e-6, "gradient": 1e-5, "GGN": 1e-5, "blocks": 1e-5, "Hessian": 5e-3, "step": 1e-4},
}
"""The largest relative errors of what is right, for each rounding of models; the Hessian's are those of differences."""
SMALL = 1e-3
UNSURE = 1e-3
"""The relative uncertainty at which differences say nothing."""


def measure(case: Case) -> dict[str, Any]:
    """What came of an architecture: its size, and errors by name; or the sentence by which it is refused."""
    plain = (JaxPlain if case.params is not None else TorchPlain)(case)
    found: dict[str, Any] = {"parameters": plain.start.size, "single": case.eps > 2.0**-52, "surrogate": case.surrogate}
    try:
        found["errors"] = _errors(case, plain)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        if case.refused is None:
            raise
        found["refused"] = f"{type(error).__name__}: {error}"
    return found


def faults(case: Case, found: dict[str, Any]) -> list[str]:
    """What is not as it is declared."""
    if case.refused is not None:
        said = found.get("refused", "nothing")
        return [] if re.search(case.refused, said) else [f"is to be refused as {case.refused!r}, and said: {said}"]
    limits, errors = dict(TOLERANCES[case.eps]), found["errors"]
    limits["gradient by differences"] = limits["Hessian"]
    limits["Hessian"] = max(limits["Hessian"], 10 * errors["differences"])
    limits["differences"] = UNSURE
    if case.surrogate:  # differences of what is no gradient are no Hessian, nor of values that gradient
        del limits["Hessian"], limits["gradient by differences"]
    return [f"{name} is off by {errors[name]:.1e}" for name, limit in limits.items() if not errors[name] <= limit]


def objective(case: Case) -> lg.Objective:
    """The architecture as it is given to the package."""
    losses = lg.losses
    made = {
        "classes": losses.CrossEntropy(),
        "squares": losses.SquaredError(),
        "yes or no": losses.BinaryCrossEntropy(),
        "counts": losses.Poisson(),
    }
    if case.residuals is not None:
        return lg.Objective.from_residuals(case.residuals)
    loss = case.loss if callable(case.loss) else made[case.loss]
    return lg.Objective(case.model, loss, (case.inputs, case.targets))


def direction(plain: Any, seed: int) -> Array:
    """Random, each leaf in the size of its parameters."""
    rng, whole = np.random.default_rng(seed), float(np.sqrt(np.mean(plain.start**2)))
    parts, begin = [], 0
    for _, size in plain.sizes:
        rms = float(np.sqrt(np.mean(plain.start[begin : begin + size] ** 2))) if size else 0.0
        parts.append(rng.standard_normal(size) * (rms or whole))
        begin += size
    return np.concatenate(parts) * plain.moves


def off(plain: Any, got: Array, want: Array) -> float:
    """The largest relative error of a leaf."""
    whole, begin, worst = float(np.linalg.norm(want)), 0, 0.0
    for _, size in plain.sizes:
        a, b = got[begin : begin + size], want[begin : begin + size]
        scale = max(float(np.linalg.norm(b)), SMALL * whole, 1e-300)
        error = float(np.linalg.norm(a - b)) / scale
        worst = error if not error <= worst else worst  # keeps a NaN
        begin += size
    return worst


def _errors(case: Case, plain: Any) -> dict[str, float]:
    params, fit = case.params if case.params is not None else case.model, objective(case)
    if case.residuals is not None and case.params is None:
        params = dict(case.model.named_parameters())
    x, v = plain.start, direction(plain, 1)
    # Ours first, so that what is refused is refused by the package.
    ours, G, H = fit.value_and_gradient(params), lg.GGN(fit, params), lg.Hessian(fit, params)
    Gv, Hv = (plain.flat(A @ plain.tree(v)) for A in (G, H))

    value, gradient = plain.value(x), plain.gradient(x)
    J, H_L = plain.jacobian(x), plain.loss_hessian(x)
    slope, change = along(plain.value, x, v, case.eps), _derivative(plain.gradient, x, v, case.eps)
    away = max(0.0, abs(float(slope.value[0]) - float(gradient @ v)) - 10 * slope.uncertainty)
    return {
        "value": abs(float(ours[0]) - float(value)) / abs(float(value)),
        "gradient": off(plain, plain.flat(ours[1]), gradient),
        "gradient by differences": away / max(float(np.linalg.norm(gradient) * np.linalg.norm(v)), 1e-300),
        "GGN": off(plain, Gv, J.T @ (H_L @ (J @ v))),
        "Hessian": off(plain, Hv, change.value),
        "differences": change.relative,
        "blocks": _blocks(lg.BlockGGN(fit, params, blocks="layer"), plain, v, J, H_L),
        "step": _step(G, plain, gradient, J, H_L),
    }


def _derivative(f: Callable[[Array], Array], x: Array, v: Array, eps: float) -> Derivative:
    """Along v, or along less of it where that has kinks on its way: a large network's units are many."""
    best = along(f, x, v, eps)
    for size in (1e-2, 1e-4):
        if best.relative > max(1e-6, 1e3 * eps):
            made = along(f, x, size * v, eps)
            made = Derivative(made.value / size, made.uncertainty / size)
            best = min(best, made, key=lambda found: found.relative)
    return best


def _blocks(B: Any, plain: Any, v: Array, J: Array, H_L: Array) -> float:
    places = {name: i for i, (name, _) in enumerate(plain.sizes)}
    ends = np.cumsum([0, *(size for _, size in plain.sizes)])
    want = np.zeros_like(v)
    for block in B.blocks:
        mine = [places.get(B.domain.names[i], i) for i in block.leaves]
        here = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in mine])
        want[here] = J[:, here].T @ (H_L @ (J[:, here] @ v[here]))
    return off(plain, plain.flat(B @ plain.tree(v)), want)


def _step(G: Any, plain: Any, gradient: Array, J: Array, H_L: Array) -> float:
    damping = float(np.sum((J @ gradient) * (H_L @ (J @ gradient)))) / float(gradient @ gradient)
    damping = damping or 1.0
    JHJ = damping * np.eye(len(J)) + (J @ J.T) @ H_L
    want = (gradient - J.T @ (H_L @ np.linalg.solve(JHJ, J @ gradient))) / damping
    values = np.linalg.eigvalsh(H_L)
    most = 4 * len(J) + 50
    solver = (
        lg.CG(rtol=1e-11, max_steps=most) if values[0] > -1e-9 * values[-1] else lg.MINRES(rtol=1e-11, max_steps=most)
    )
    made = lg.solve(lg.Damped(G, damping), plain.tree(gradient), solver)
    return off(plain, plain.flat(made.x), want)
