"""What several gloo processes check of leaves that are gathered one at a time; run by ``process_checks.run``."""

import gc
import os
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from custom_functions import Mm
from dtensor_checks import Collectives, as_given, whole
from dtensor_checks import spread as spread_out
from linop_gn_torch import gathering
from peaks import allocations
from process_checks import LOSS, close, data, mine, parallel, raised
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

import linop_gn as lg


def deep(width, layers):
    torch.manual_seed(0)
    net = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(nn.Linear(3, width), *net, nn.Linear(width, 2)).double()


def spread(tree):
    """Numbers as they are."""
    return {name: x if x.ndim == 0 else spread_out({name: x})[name] for name, x in tree.items()}


def leaves(net):
    return {name: p.detach() for name, p in net.named_parameters()}


def held_to(model, P, kinds=(lg.GGN, lg.Hessian, lg.BlockGGN), tolerance=1e-12, **options):
    """Value, gradient and products, of all data on each process and of shares, are those of one process."""
    one = lg.Objective(model, LOSS, data(), l2=0.1)
    for fit in (
        lg.Objective(model, LOSS, data(), l2=0.1, **options),
        parallel(model, mine(*data()), l2=0.1, **options),
    ):
        D = spread(P)
        close(fit.value(D), one.value(P), tolerance)
        for _ in range(2):
            close(as_given(parallel(model, mine(*data()), l2=0.1).gradient(D), D), one.gradient(P), tolerance)
        close(as_given(fit.gradient(D), D), one.gradient(P), tolerance)
        for kind in kinds:
            if kind is lg.BlockGGN and not fit.reduce:
                continue
            A, B = kind(fit, D), kind(one, P)
            for seed in (0, 1):
                v = B.domain.unpack(B.domain.random(seed))
                close(as_given(A @ spread(v), D), B @ v, tolerance)


class Done:
    def wait(self, *timeout):
        return True

    def is_completed(self):
        return True


class Aside(Collectives):
    """Collectives in NumPy's memory and another thread: what a library needs for itself is not counted."""

    def _counting(self, name, function):
        def counting(x, *args, **options):
            self.sent.append((name, x.numel()))
            copies = [torch.from_numpy(y.numpy().copy()) if isinstance(y, torch.Tensor) else y for y in (x, *args)]
            with ThreadPoolExecutor(1) as other:
                other.submit(lambda: function(*copies, **options).wait()).result()
            x.copy_(copies[0])
            return Done()

        return counting


# checks


def check_one_layer_at_a_time():
    """No collective is larger than the largest leaf, from the linearisation to the solution."""
    net = deep(16, 2)
    P, one = leaves(net), lg.Objective(net, LOSS, data(), l2=0.1)
    D = spread(P)
    for fit, kind in ((one, lg.Hessian), (parallel(net, mine(*data()), l2=0.1), lg.GGN)):
        B, h = lg.Damped(kind(one, P), 1.0), one.gradient(P)
        with Collectives() as sent:
            A, g = lg.Damped(kind(fit, D), 1.0), fit.gradient(D)
            x = lg.solve(A, g, lg.MINRES(steps=4)).x
            made = A @ g
        assert max(count for _, count in sent) == 16 * 16, sent
        close(whole(x), lg.solve(B, h, lg.MINRES(steps=4)).x, 1e-10)
        close(whole(made), B @ h)


def check_small_models_at_once():
    """Their leaves are gathered together: for v, and parameters in J v and in J^T u, whose sum is scattered."""
    net, few = deep(16, 2), gathering.FEW
    P, one = leaves(net), lg.Objective(net, LOSS, data(), l2=0.1)
    gathering.FEW = 1 << 18
    try:
        D, fit = spread(P), parallel(net, mine(*data()), l2=0.1)
        A, g = lg.GGN(fit, D), fit.gradient(D)
        close(whole(A @ g), lg.GGN(one, P) @ one.gradient(P))
        with Collectives() as sent:
            made = A @ g
        assert len(sent) == 4, sent
        close(whole(made), lg.GGN(one, P) @ one.gradient(P))
    finally:
        gathering.FEW = few


def check_memory_of_cg():
    """At most 1.2 of its five vectors and one gathered leaf, beyond what was there; one example has few activations."""
    net = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(96, 96), nn.Tanh()))).double()
    P, one = leaves(net), torch.ones(1, 96, dtype=torch.float64)
    D, fit = spread(P), parallel(net, (one, one))
    leaf, vector = 8 * 96**2, 8 * sum(p.numel() for p in P.values()) / dist.get_world_size()
    g = fit.gradient(D)
    with Aside():
        lg.GGN(fit, D) @ g  # what is made once
        gc.collect()
        peak, held, made = allocations(lambda: lg.solve(lg.Damped(lg.GGN(fit, D), 0.1), g, lg.CG(steps=20)))
    assert made.steps > 2
    assert peak <= 1.2 * 5 * vector + leaf, (peak / vector, leaf / vector)
    assert held <= 1.1 * vector  # the solution


class Experts(nn.Module):
    """Examples go to the expert that their numbers choose, in the order in which they come."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(3, 2) for _ in range(4))
        self.unused = nn.Parameter(torch.ones(3))
        self.double()

    def forward(self, x):
        outputs = x.new_zeros(len(x), 2)
        for row in range(len(x)):
            which = int(x[row].abs().sum() * 10) % 4
            outputs[row] = self.experts[which](x[row]).tanh()
        return outputs


def check_what_goes_with_an_operator():
    """Its graph and the parameters it holds, at once: there is no cycle of references."""
    net = deep(5, 1)
    D, fit = spread(leaves(net)), parallel(net, mine(*data()), l2=0.1)
    gc.collect()
    gc.disable()
    try:
        A = lg.Damped(lg.GGN(fit, D), 0.1)
        made = lg.solve(A, fit.gradient(D), lg.CG(steps=2)).x
        ways = [weakref.ref(x) for x in gc.get_objects() if type(x) is gathering.Way]
        assert ways
        del A, fit
        assert not any(way() for way in ways)
    finally:
        gc.enable()
    assert made.keys() == D.keys()


def check_processes_whose_data_go_other_ways():
    net = Experts()
    held_to(net, leaves(net), (lg.GGN,))


def check_other_ways_of_all_kinds():
    net = Experts()
    held_to(net, leaves(net), (lg.Hessian, lg.BlockGGN))
    held_to(net, leaves(net), (lg.GGN,), memory="low")


class Tied(nn.Module):
    """Weights of two layers, ones used again and again, ones behind a checkpoint, and a scale that is a number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.into, self.again = nn.Linear(3, 5), nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.out = nn.Linear(3, 5)
        self.out.weight = self.into.weight
        self.last, self.norm = nn.Linear(5, 2), nn.LayerNorm(5)
        self.double()

    def forward(self, x):
        h = self.into(x) + self.out(x.sin()) * self.scale
        for _ in range(6):
            h = torch.tanh(self.again(h))
        return self.last(checkpoint(self.norm, h, use_reentrant=False) + h @ self.again.weight.T.contiguous()[:, :5])


def check_what_models_do_with_their_weights():
    net = Tied()
    held_to(net, leaves(net))
    held_to(net, leaves(net), (lg.GGN,), memory="low")
    P = {"w": leaves(net)["again.weight"], "b": torch.ones(2, dtype=torch.float64)}

    def views(p, x):
        left, right = p["w"].T.split([3, 2], dim=1)
        rows = torch.vmap(lambda row: (row @ left[:3].clone()).sin() @ p["w"][:3, :2])(x)
        return rows + p["b"] + p["w"].mT[1:3].sum() + right.reshape(-1)[::2].exp().sum() + p["w"].diagonal().norm()

    held_to(views, P)

    D, one = spread(P), torch.ones((), dtype=torch.float64)
    for write in (
        lambda w: w[0].add_(1.0),
        lambda w: torch._foreach_mul_([w], 2.0),
        lambda w: torch.add(one, one, out=w),
    ):

        def writes(p, x, write=write):
            with torch.no_grad():
                write(p["w"])
            return x @ p["w"][:3, :2]

        fit = lg.Objective(writes, LOSS, data())
        assert "writes to parameter 0" in raised(ValueError, lambda: fit.gradient(D))  # noqa: B023


def check_half_precision():
    net = deep(16, 1).to(torch.bfloat16)
    P, (x, y) = leaves(net), (part.to(torch.bfloat16) for part in data()[:2])
    one = lg.Objective(net, LOSS, (x, y))
    shares = parallel(net, mine(x, y))
    for fit in (one, shares):
        D = spread(P)
        g = fit.gradient(D)
        assert all(isinstance(leaf, DTensor) and leaf.dtype == torch.bfloat16 for leaf in g.values())
        close({k: v.float() for k, v in whole(g).items()}, {k: v.float() for k, v in one.gradient(P).items()}, 3e-2)
        A, B = lg.GGN(fit, D), lg.GGN(one, P)
        close(
            {k: v.float() for k, v in whole(A @ g).items()},
            {k: v.float() for k, v in (B @ one.gradient(P)).items()},
            0.1,
        )


def check_custom_functions():
    P = {"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    held_to(lambda p, x: Mm.apply(x, p["w"]).tanh(), P)


def check_fewer_outputs_than_parameters_on_some():
    """What is scaled before it is pulled back is so on all processes, or on none."""
    P = {"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    held_to(lambda p, x: (x @ p["w"]).tanh(), P, kinds=(lg.GGN,))


def check_runs():
    net = deep(5, 1)
    P, one = leaves(net), lg.Objective(net, LOSS, data(), l2=0.1)
    fits = one, parallel(net, mine(*data()), l2=0.1)
    free = lg.HessianFree(preconditioner=lg.preconditioners.SquaredGradient())
    for i, method in enumerate((lg.TrustRegion(), lg.LevenbergMarquardt(), lg.NewtonCG(), free)):
        wanted = lg.minimize(one, P, method, max_steps=10)
        run = lg.minimize(fits[i % 2], spread(P), method, max_steps=10)
        close(whole(run.params), wanted.params, 1e-8)
        assert run.steps == wanted.steps


def check_squares_of_examples():
    """Signs are others on each process: squares of one example that all have add up, and are no square of a sum."""
    x = tuple(part[:1] for part in data()[:2])
    net = deep(5, 1)
    fit, D, wanted = parallel(net, x), spread(leaves(net)), lg.Objective(net, LOSS, x).gradient(net)
    A = lg.Damped(lg.GGN(fit, D), 1.0)
    made = lg.preconditioners.EmpiricalFisher(exponent=1.0, probes=16)(A).values ** -1 - 1.0
    found = whole(A.domain.unpack(made))
    times = sum(g.sum() for g in found.values()) / sum(g.square().sum() for g in wanted.values())
    close(found, {name: times * g**2 for name, g in wanted.items()})
    assert abs(times - 1) < 4 * (2 / 16) ** 0.5, times
    one, fit = lg.Objective(net, LOSS, data()), parallel(net, mine(*data()))
    B = lg.Damped(lg.GGN(one, leaves(net)), 1.0)
    method = lg.CG(rtol=1e-6, preconditioner=lg.preconditioners.EmpiricalFisher(probes=2))
    found = lg.solve(lg.Damped(lg.GGN(fit, D), 1.0), fit.gradient(D), method)
    close(whole(found.x), lg.solve(B, one.gradient(leaves(net)), lg.CG(rtol=1e-9)).x, 1e-4)


def check_processes_with_fewer_batches():
    """A list of two and others of one, and parts of shares that are not even."""
    net = deep(5, 1)
    P, one, (x, y, _) = leaves(net), lg.Objective(net, LOSS, data()[:2], l2=0.1), data()
    D, g = spread(P), one.gradient(P)
    given = [(x[:1], y[:1]), (x[1:5], y[1:5])] if dist.get_rank() == 0 else [mine(x, y)]
    for fit in (
        parallel(net, given, l2=0.1),
        parallel(net, mine(x, y), l2=0.1, microbatch=2),
        parallel(net, mine(x, y), l2=0.1, microbatch=3, memory="low"),
    ):
        close(fit.value(P), one.value(P))  # as many as there are
        close(whole(fit.gradient(D)), g)
        close(whole(lg.GGN(fit, D) @ spread(g)), lg.GGN(one, P) @ g)


def check_compiled_objectives_are_eager():
    net = deep(5, 1)
    P, one = leaves(net), lg.Objective(net, LOSS, data())
    v = one.gradient(P)
    for fit in (lg.Objective(net, LOSS, data(), compile=True), parallel(net, mine(*data()), compile=True)):
        D = spread(P)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for kind in (lg.GGN, lg.Hessian):
                close(whole(kind(fit, D) @ spread(v)), kind(one, P) @ v)
        assert any("hold a DTensor" in str(x.message) for x in told)


def check_a_run_of_one_process_goes_on_with_all():
    net, path = deep(5, 1), Path(os.environ["LINOP_GN_TEST_FOLDER"]) / "of one"
    P, one, method = leaves(net), lg.Objective(net, LOSS, data(), l2=0.1), lg.LevenbergMarquardt()
    if dist.get_rank() == 0:
        lg.minimize(one, P, method, max_steps=3, checkpoint=path)
    dist.barrier()
    run = lg.minimize(parallel(net, mine(*data()), l2=0.1), spread(P), method, max_steps=6, checkpoint=path)
    assert run.steps == 6
    close(whole(run.params), lg.minimize(one, P, method, max_steps=6).params, 1e-8)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}
