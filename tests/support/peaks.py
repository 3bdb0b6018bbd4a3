"""The memory that a run takes at its peak: counted, not timed, and the same on every machine."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import accumulate
from typing import Any

__all__ = ["allocations", "compiled_peak", "compiled_product", "peak"]


def peak(name: str, run: Callable[[], Any]) -> int:
    """Bytes that ``run()`` holds at its peak beyond those held before, in NumPy's arrays or torch's."""
    return traced_by_torch(run) if name == "torch" else traced_by_python(run)


def traced_by_python(run: Callable[[], Any]) -> int:
    run()  # what is made once
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def traced_by_torch(run: Callable[[], Any]) -> int:
    run()
    return allocations(run)[0]


def allocations(run: Callable[[], Any]) -> tuple[int, int, Any]:
    """Bytes at the peak and in the end of what torch allocates in ``run()``, and its result.

    From the allocator's own account of the CPU: what autograd keeps counts as well.
    """
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        made = run()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    return max(held, default=0), held[-1] if held else 0, made


def compiled_peak(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of temporaries and results of JAX's program for ``function(*arguments)``, which is not run."""
    import jax

    taken = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return int(taken.temp_size_in_bytes + taken.output_size_in_bytes)


def compiled_product(curvature: Any, end: Callable[..., Any] = lambda p, z: z) -> tuple[int, int, int]:
    """Bytes that a model's ``curvature`` keeps in JAX, that a product takes, and of one copy of its many logits.

    ``end(params, logits)`` is what comes after the last product, with a number "T" and a bias "b" among its parameters.
    """
    import jax

    import linop_gn as lg

    n, classes, hidden = 160, 1 << 15, 16
    some = jax.ShapeDtypeStruct
    shapes = {"A": (hidden, hidden), "W": (hidden, classes), "T": (), "b": (classes,)}
    params = {name: some(shape, "float32") for name, shape in shapes.items()}

    def model(p: Any, x: Any) -> Any:
        return end(p, jax.numpy.tanh(x @ p["A"]) @ p["W"])

    x = some((4, n // 4, hidden), "float32")
    y = some(jax.eval_shape(model, params, x).shape[:-1], "int32")

    def prepared(params: Any, x: Any, y: Any) -> Any:
        return curvature(lg.Objective(model, lg.losses.CrossEntropy(), (x, y)), params).prepare()

    A = jax.eval_shape(prepared, params, x, y)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(A))
    return kept, compiled_peak(lambda A, v: A @ v, A, params), n * classes * 4
