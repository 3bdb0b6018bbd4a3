"""What each process does with its device in a group of gloo or of NCCL, beside one process that has all data."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import linop_gn as lg

ROWS = 13


def on(device):
    """A network, and data, the same in each process."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.randn(ROWS, 3, dtype=torch.float64), torch.randn(ROWS, 2, dtype=torch.float64)
    return net.to(device), x.to(device), y.to(device)


def close(got, expected, limit):
    """Fail where two trees of tensors, or of DTensors, differ by more."""
    for name, want in expected.items():
        have = got[name].full_tensor() if hasattr(got[name], "full_tensor") else got[name]
        assert have.device == want.device, (name, have.device, want.device)
        assert float((have - want).abs().max()) <= limit * max(1.0, float(want.abs().max())), name


def run(rank, size, folder, backend):
    torch.set_num_threads(1)
    kind = "cuda" if backend == "nccl" else "cpu"
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    init, wait = f"file://{folder}/store", timedelta(seconds=60)
    dist.init_process_group(backend, init_method=init, rank=rank, world_size=size, timeout=wait)

    net, x, y = on(device)
    loss, params = lg.losses.SquaredError(), {name: p.detach() for name, p in net.named_parameters()}
    whole = lg.Objective(net, loss, (x, y), l2=0.05)  # well-posed, so that rounding stays what it is
    own = lg.distributed.DataParallel(lg.Objective(net, loss, (x[rank::size], y[rank::size]), l2=0.05))
    mesh = init_device_mesh(kind, (size,))
    spread = {name: distribute_tensor(p, mesh, [Shard(0)]) for name, p in params.items()}
    for point in (params, spread):
        close(own.gradient(point), whole.gradient(params), 1e-12)
        for curvature in (lg.GGN, lg.Hessian, lg.BlockGGN):
            A, B = curvature(own, point), curvature(whole, params)
            close(A @ own.gradient(point), B @ whole.gradient(params), 1e-12)
        solved = lg.solve(lg.Damped(lg.GGN(own, point), 0.1), own.gradient(point), lg.CG(rtol=1e-10))
        assert solved.succeeded, solved
        fit, alone = (lg.minimize(of, at, max_steps=10) for of, at in ((own, point), (whole, params)))
        close(fit.params, alone.params, 1e-8)
    Path(folder, f"passed{rank}").touch()
    dist.destroy_process_group()
