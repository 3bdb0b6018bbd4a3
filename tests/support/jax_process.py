"""One of two processes of JAX, with two devices each: what they find is what one device does.

Started by test_sharded_processes.py with the number of the process and the port where they meet.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import linop_gn as lg


def main(rank: int, port: int) -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    from sharded import close, one, spread  # which make arrays: not before JAX knows of the others

    assert jax.device_count() == 4
    there, rows = one(), slice(12 * rank, 12 * rank + 12)
    for layout in ("data-parallel", "fully sharded"):
        here = spread(layout, devices=4)
        own = [np.asarray(x)[rows] for x in there.data]
        data = [
            jax.make_array_from_process_local_data(x.sharding, part) for x, part in zip(here.data, own, strict=True)
        ]
        here = here._replace(data=tuple(data))

        def found(h: Any) -> tuple[Any, Any]:
            x = lg.solve(lg.Damped(h.ggn, 0.1), h.gradient, lg.CG(rtol=1e-12)).x
            return (h.gradient, h.ggn @ h.gradient, x), lg.to_scipy(h.ggn) @ np.arange(248.0)

        (trees, product), (want, wanted) = found(here), found(there)
        close(multihost_utils.process_allgather(trees, tiled=True), want, 1e-9)
        close(product, wanted)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
