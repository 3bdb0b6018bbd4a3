"""What each process does with its device in a group of gloo or of NCCL, beside one process that has all data."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from dtensor_checks import as_given, network, spread
from layer_checks import leaves
from process_checks import LOSS, close, data, parallel
from torch.distributed.device_mesh import init_device_mesh

import linop_gn as lg

WELL_POSED = {"l2": 0.05}
"""So that rounding stays what it is in ten steps."""


def run(rank, size, folder, backend):
    torch.set_num_threads(1)
    kind = "cuda" if backend == "nccl" else "cpu"
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    init, wait = f"file://{folder}/store", timedelta(seconds=60)
    dist.init_process_group(backend, init_method=init, rank=rank, world_size=size, timeout=wait)

    net, given = network().to(device), tuple(x.to(device) for x in data(13))
    whole = lg.Objective(net, LOSS, given, **WELL_POSED)
    own = parallel(net, tuple(x[rank::size] for x in given), **WELL_POSED)
    params = leaves(net)
    for point in (params, spread(params, init_device_mesh(kind, (size,)))):

        def plain(tree, point=point):
            return tree if point is params else as_given(tree, point)

        close(plain(own.gradient(point)), whole.gradient(params), 1e-12)
        for curvature in (lg.GGN, lg.Hessian, lg.BlockGGN):
            A, B = curvature(own, point), curvature(whole, params)
            close(plain(A @ own.gradient(point)), B @ whole.gradient(params), 1e-12)
        solved = lg.solve(lg.Damped(lg.GGN(own, point), 0.1), own.gradient(point), lg.CG(rtol=1e-10))
        assert solved.succeeded, solved
        fit, alone = (lg.minimize(of, at, max_steps=10) for of, at in ((own, point), (whole, params)))
        close(plain(fit.params), alone.params, 1e-8)
    Path(folder, f"passed{rank}").touch()
    dist.destroy_process_group()
