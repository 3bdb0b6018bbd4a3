"""The systems that solvers are timed on, and ours behind the face that peers have (:mod:`peers`).

Products are cheap on purpose: a diagonal, or a diagonal over first differences
(2 n - 1 equations in n unknowns), so that what is measured is the solver. Only
compile times have a product of some size: a network of eight layers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from peers import Answer, Run

import linop_gn as lg

import peer_cases  # isort: skip  (found through peers)

OURS = {
    "definite": ("CG",),
    "symmetric": ("MINRES",),
    "rectangular": ("LSMR", "LSQR"),
    "spectrum": ("Lanczos selective", "Lanczos full", "Lanczos none"),
}


def stacked(v: Any, d: Any) -> Any:
    """(D v, differences of v)."""
    return lg.namespace(v).concat([d * v, v[1:] - v[:-1]])


def stacked_adjoint(u: Any, d: Any) -> Any:
    """D u_1 + S^T u_2 with the differences S."""
    n, xp = d.shape[0], lg.namespace(u)
    zero = u[:1] * 0
    return d * u[:n] + xp.concat([zero, u[n:]]) - xp.concat([u[n:], zero])


def values(spectrum: str, n: int) -> np.ndarray:
    """Eigenvalues (or the diagonal over the differences)."""
    if spectrum == "well conditioned":
        return np.linspace(1.0, 10.0, n)
    if spectrum == "spread to 1e8":
        return np.logspace(-8.0, 0.0, n)
    if spectrum == "clustered":
        centres = np.resize([1.0, 1e1, 1e2, 1e3, 1e4], n)
        return centres * (1.0 + 1e-3 * np.random.default_rng(1).uniform(-1, 1, n))
    if spectrum == "outliers":
        return np.concatenate([np.linspace(0.0, 1.0, n - 10), np.linspace(2.0, 11.0, 10)])
    raise ValueError(f"no spectrum {spectrum!r}: choose one of {SPECTRA}.")


SPECTRA = ("well conditioned", "spread to 1e8", "clustered")


def system(family: str, spectrum: str, n: int, dtype: str, **options: Any) -> peer_cases.Case:
    """A system with a solution x of unit variance; least squares with a residual of a hundredth of b."""
    rng = np.random.default_rng(0)
    d, x = values(spectrum, n), rng.standard_normal(n)
    if family == "symmetric":
        d = np.where(np.arange(n) % 2, 1.0, -1.0) * d
    if family == "rectangular":
        options |= {"product": stacked, "adjoint": stacked_adjoint, "size": float(np.sqrt(d.max() ** 2 + 4.0))}
        b = stacked(x, d)
        noise = rng.standard_normal(len(b))
        b += 1e-2 * np.linalg.norm(b) / np.linalg.norm(noise) * noise
    else:
        b = x if family == "spectrum" else d * x
    truth = {"rectangular": "least squares", "spectrum": "eigenvalues"}.get(family, "solution")
    name = f"{family}, {spectrum}"
    return peer_cases.Case(name, name, family, (d.astype(dtype),), b.astype(dtype), {}, truth, **options)


# a product worth compiling

WIDTH, LAYERS, BATCH = 16, 8, 8


def _outputs(theta: Any, x: Any) -> Any:
    import jax.numpy as jnp

    for weights in theta.reshape(LAYERS, WIDTH, WIDTH):
        x = jnp.tanh(x @ weights)
    return x


def network(v: Any, theta: Any, x: Any) -> Any:
    """(J^T J + I) v of the network."""
    import jax

    return jax.vjp(lambda t: _outputs(t, x), theta)[1](jax.jvp(lambda t: _outputs(t, x), (theta,), (v,))[1])[0] + v


def network_forward(v: Any, theta: Any, x: Any) -> Any:
    """J v."""
    import jax

    return jax.jvp(lambda t: _outputs(t, x), (theta,), (v,))[1].ravel()


def network_adjoint(u: Any, theta: Any, x: Any) -> Any:
    """J^T u."""
    import jax

    return jax.vjp(lambda t: _outputs(t, x), theta)[1](u.reshape(x.shape))[0]


def network_system(family: str) -> peer_cases.Case:
    """A Gauss-Newton system, or its least-squares form."""
    rng = np.random.default_rng(0)
    theta = rng.standard_normal(LAYERS * WIDTH * WIDTH) / np.sqrt(WIDTH)
    x = rng.standard_normal((BATCH, WIDTH))
    tall = family == "rectangular"
    b = rng.standard_normal(x.size if tall else theta.size)
    product, adjoint = (network_forward, network_adjoint) if tall else (network, None)
    return peer_cases.Case(
        "network", "network", family, (theta, x), b, {}, max_steps=50, product=product, adjoint=adjoint
    )


# ours


def ours(case: peer_cases.Case, name: str, backend: str) -> Run:
    """Ours on arrays of a backend; in JAX inside one ``jax.jit`` whose arguments are the system."""
    chosen = method(case, name)
    if backend == "jax":
        return _compiled(case, chosen)
    if backend == "torch":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        as_array: Callable[..., Any] = torch.tensor
    else:
        as_array = np.asarray if backend == "numpy" else __import__("cupy").asarray
    data, b = tuple(map(as_array, case.data)), as_array(case.b)
    A = peer_cases.operator(case, data, b)
    to_host = lg.load(backend).to_numpy

    def call() -> Any:
        solution = lg.solve(A, b, chosen)
        if backend == "cupy":
            __import__("cupy").cuda.get_current_stream().synchronize()
        return solution

    def read(solution: Any) -> Answer:
        x = np.asarray(to_host(solution.x), dtype=np.float64)
        return Answer(x, solution.succeeded, solution.status.name, int(solution.steps), int(solution.products))

    return Run(call, read)


def _compiled(case: peer_cases.Case, chosen: Any) -> Run:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", case.dtype == "float64")
    data, b = tuple(map(jnp.asarray, case.data)), jnp.asarray(case.b)

    def solve(data: Any, b: Any) -> Any:
        solution = lg.solve(peer_cases.operator(case, data, b), b, chosen)
        return solution.x, solution.code, solution.steps, solution.products

    def read(found: Any) -> Answer:
        status = lg.Status(int(found[1]))
        return Answer(np.asarray(found[0], dtype=float), status.succeeded, status.name, int(found[2]), int(found[3]))

    program = jax.jit(solve)
    return Run(lambda: jax.block_until_ready(program(data, b)), read, program, (data, b))


def largest(case: peer_cases.Case, backend: str, wanted: int = 6) -> Run:
    """The largest eigenvalues: a basis that is extended until their error bounds meet the tolerance."""
    if backend == "jax":
        import jax

        jax.config.update("jax_enable_x64", case.dtype == "float64")
    asarray = lg.load(backend).asarray
    data, b = tuple(asarray(entries, case.dtype, None) for entries in case.data), asarray(case.b, case.dtype, None)
    A = peer_cases.operator(case, data, b)

    def call() -> lg.Krylov:
        basis = lg.krylov(A, b, 20)
        while True:
            values, bounds = basis.eigenvalues()
            met = bounds[-wanted:].max() <= case.rtol * abs(values).max()
            if met or basis.steps >= case.max_steps:
                return basis
            basis = basis.extend(10)

    def read(basis: lg.Krylov) -> Answer:
        values, bounds = basis.eigenvalues()
        met = bool(bounds[-wanted:].max() <= case.rtol * abs(values).max())
        x = np.asarray(values[-wanted:], dtype=float)
        return Answer(x, met, basis.status.name, int(basis.steps), int(basis.products))

    return Run(call, read)


def method(case: peer_cases.Case, name: str) -> Any:
    """The method with the options of the case."""
    if name.startswith("Lanczos"):
        return lg.Lanczos(steps=case.max_steps, reorthogonalise=name.removeprefix("Lanczos "))
    return peer_cases.method(case, name)
