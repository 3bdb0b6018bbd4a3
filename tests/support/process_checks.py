"""What each of several gloo processes checks; :func:`run` is what they run, and writes what came of each check."""

import importlib
import os
import pickle
import time
import traceback
from datetime import timedelta
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from linop_gn_torch import optim
from torch import nn

import linop_gn as lg

FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
ROWS = {2: [0, 5, 8], 3: [0, 5, 8, 8], 4: [0, 5, 6, 8, 8]}
LOSS = lg.losses.SquaredError()


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data(rows=8):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(rows, 3), draw(rows, 2), draw(rows).abs() + 0.5


def mine(*arrays):
    """5 rows, 3 rows, none."""
    cuts, rank = ROWS[dist.get_world_size()], dist.get_rank()
    return tuple(x[cuts[rank] : cuts[rank + 1]] for x in arrays)


def parallel(model, given, group=None, loss=LOSS, **options):
    return lg.distributed.DataParallel(lg.Objective(model, loss, given, **options), group)


def close(found, wanted, tolerance=1e-12):
    found, wanted = (x if isinstance(x, dict) else {"": x} for x in (found, wanted))
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=tolerance, atol=tolerance)


def same_everywhere(tree):
    """To the last bit."""
    for x in tree.values() if isinstance(tree, dict) else [tree]:
        copies = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(copies, x.contiguous())
        assert all(map(torch.equal, copies, [x] * len(copies)))


def raised(kind, ask):
    try:
        ask()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


class Again:
    """A loader."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Counted:
    """How many numbers each all-reduce sends."""

    def __enter__(self):
        self.sent, self._plain = [], dist.all_reduce

        def counting(x, *args, **options):
            self.sent.append(x.numel())
            return self._plain(x, *args, **options)

        dist.all_reduce = counting
        return self.sent

    def __exit__(self, *exc):
        dist.all_reduce = self._plain


# checks


def check_a_share_without_a_batch():
    """The first process has all batches; outputs are of another dtype than parameters in the last case."""
    whole = [data()] * 2
    batches = [] if dist.get_rank() else whole
    wide = lg.Objective(network(), LOSS, whole, l2=0.1)
    fit = parallel(network(), batches, l2=0.1)
    close(fit.value(network()), wide.value(network()))
    close(fit.gradient(network()), wide.gradient(network()))
    for kind in (lg.GGN, lg.Hessian, lg.BlockGGN, lg.EmpiricalFisher):
        v = kind(wide, network()).domain.random(0, 2)
        close(kind(fit, network()) @ v, kind(wide, network()) @ v)
    run = lg.minimize(fit, network(), max_steps=3)
    close(run.params, lg.minimize(wide, network(), max_steps=3).params, 1e-8)
    apart = parallel(network(), batches, dist.new_group())  # which is out of step then
    assert "a batch without rows" in raised(Exception, lambda: lg.KFAC(apart, network()) @ v)
    fit, p = parallel(lambda p, x: x @ p.double(), batches, dist.group.WORLD), torch.ones(3, 2)
    wide = lg.Objective(lambda p, x: x @ p.double(), LOSS, whole)
    close(fit.value(p), wide.value(p))
    close(fit.gradient(p), wide.gradient(p), 1e-6)


def check_products_of_uneven_shares():
    net = network()
    params = dict(net.named_parameters())
    V = torch.randn(26, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for l2, loss in ((None, LOSS), (0.1, lg.losses.SquaredError(reduction="sum"))):
        fit, whole = parallel(net, mine(*data()), loss=loss, l2=l2), lg.Objective(net, loss, data(), l2=l2)
        close(fit.value(net), whole.value(net))
        close(fit.gradient(net), whole.gradient(net))
        same_everywhere(fit.gradient(net))
        for kind in (lg.GGN, lg.Hessian, lg.BlockGGN, lg.EmpiricalFisher):
            made = kind(fit, params) @ V
            close(made, kind(whole, params) @ V)
            same_everywhere(made)


def check_kronecker_factors():
    net, (x, y, w), rank = network(), data(9), dist.get_rank()
    whole = lg.Objective(net, LOSS, (x, y, w))
    fit = parallel(net, tuple(part[rank :: dist.get_world_size()] for part in (x, y, w)))
    v = lg.GGN(whole, net).domain.random(0)
    for kind, accuracy in ((lg.KFAC, 1e-12), (lg.EKFAC, 1e-9)):
        made = kind(fit, net).inverse(damping=0.1) @ v
        close(made, kind(whole, net).inverse(damping=0.1) @ v, accuracy)
        same_everywhere(made)


def check_means_of_means_are_wrong():
    """5 + 3 rows, as a Hessian averaged over the processes has them."""
    net = network()
    own = lg.Hessian(lg.Objective(net, LOSS, mine(*data()[:2])), net) if len(mine(data()[0])[0]) else None
    v = lg.GGN(lg.Objective(net, LOSS, data()[:2]), net).domain.random(0)
    mean = own @ v if own is not None else torch.zeros_like(v)
    dist.all_reduce(mean)
    right = lg.Hessian(lg.Objective(net, LOSS, data()[:2]), net) @ v
    assert (mean / 2 - right).norm() > 0.05 * right.norm()
    close(lg.Hessian(parallel(net, mine(*data()[:2])), net) @ v, right)


def check_collectives_are_counted():
    net, marks = network(), 33
    fit, n = parallel(net, mine(*data())), 26
    fit.value(network(1))
    with Counted() as sent:
        fit.value_and_gradient(net)
        assert sent == [1 + n + 1 + marks]
        G = lg.GGN(fit, net)
        v = G.domain.random(0)
        assert len(sent) == 1
        G @ v
        G @ torch.stack([v, v], dim=1)
        assert sent[1:] == [n, 2 * n]
        lg.solve(lg.Damped(G, 0.1), v, lg.CG(steps=5))
        assert sent[3:] == [marks] + [n] * 5
        H = lg.Hessian(fit, network(2))
        H @ v
        assert sent[9:] == [1 + n + 1 + marks, n]


def check_streams_and_batches():
    net = network()
    x, y, w = mine(*data(8))
    batches = [(x[:2], y[:2], w[:2]), (x[2:], y[2:], w[2:])]
    loader = Again([(x[i : i + 2], y[i : i + 2], w[i : i + 2]) for i in range(0, max(1, len(x)), 2)])
    whole = lg.Objective(net, LOSS, data())
    v = lg.GGN(whole, net).domain.random(0)
    for given in (batches, loader):
        fit = parallel(net, given)
        close(fit.gradient(net), whole.gradient(net))
        close(lg.GGN(fit, net) @ v, lg.GGN(whole, net) @ v)


def check_wrapped_modules_are_made_right():
    net = network()
    ddp = nn.parallel.DistributedDataParallel(net)
    message = raised(TypeError, lambda: lg.Objective(ddp, LOSS, mine(*data())).value(net))
    assert "lg.distributed.DataParallel(objective)" in message
    assert "docs/many_devices.md" in message
    whole = lg.minimize(lg.Objective(net, LOSS, data(), l2=0.1), net, lg.LevenbergMarquardt(), max_steps=10)
    run = lg.minimize(parallel(ddp, mine(*data()), l2=0.1), ddp, lg.LevenbergMarquardt(), max_steps=10)
    close(run.params, whole.params, 1e-8)
    same_everywhere(run.params)
    assert abs(run.steps - whole.steps) <= 1


def check_names_and_wrappers_of_wrapped_modules():
    net = network()
    ddp = nn.parallel.DistributedDataParallel(net)
    whole = lg.Objective(net, LOSS, data())
    compiled = [torch.compile(ddp)] if FULL else []  # torch imports its compiler for it
    for wrapped in (ddp, *compiled, nn.parallel.DistributedDataParallel(ddp)):
        close(parallel(wrapped, mine(*data())).gradient(wrapped), whole.gradient(net))
    named = dict(ddp.named_parameters())
    found = parallel(ddp, mine(*data())).gradient(named)
    close({name.removeprefix("module."): x for name, x in found.items()}, whole.gradient(net))
    ddp.load_state_dict(lg.minimize(parallel(ddp, mine(*data())), named, max_steps=1).params)


def check_models_that_differ_are_refused():
    """In mode, in an option, in a buffer, in a weight that is not trained."""
    first = dist.get_rank() == 0

    def model(p=0.0, mean=0.0, mode=False, frozen=1.0):
        net = nn.Sequential(network(), nn.Dropout(p), nn.BatchNorm1d(2).double(), nn.Linear(2, 2, bias=False).double())
        net[2].running_mean += mean
        net[3].requires_grad_(False).weight.fill_(frozen)
        net[1].train(mode)
        net[2].eval()
        return net

    alike = model()
    fit = parallel(alike, mine(*data()))
    close(fit.value(alike), lg.Objective(alike, LOSS, data()).value(alike))
    for options in ({"p": 0.5}, {"mode": True}, {"mean": 0.5}, {"frozen": 2.0}):
        net = model(**options) if first else model()
        fit = parallel(net, mine(*data()))
        assert "objectives of the processes differ" in raised(ValueError, lambda fit=fit, net=net: fit.value(net))


def check_gradients_of_one_process_are_no_right_side():
    net, x, y = network(), *data()[:2]
    own = lg.Objective(net, LOSS, tuple(part[dist.get_rank() :: 3] for part in (x, y)))
    fit = lg.distributed.DataParallel(own)
    A = lg.Damped(lg.GGN(fit, net), 0.1)
    assert "fit.gradient rather than own.gradient" in raised(ValueError, lambda: lg.solve(A, own.gradient(net)))
    assert "ask for different things" in raised(
        ValueError, lambda: lg.minimize(fit, net, max_steps=2 + dist.get_rank())
    )
    close(
        lg.solve(A, fit.gradient(net)).x,
        lg.solve(lg.Damped(lg.GGN(lg.Objective(net, LOSS, (x, y)), net), 0.1), fit.gradient(net)).x,
        1e-4,
    )


def check_groups_of_one():
    net, given = network(), mine(*data())
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    own = lg.Objective(net, LOSS, data(8 + dist.get_rank()))
    fit = lg.distributed.DataParallel(own, groups[dist.get_rank()])
    close(lg.minimize(fit, net, max_steps=2).params, lg.minimize(own, net, max_steps=2).params)
    weights = given[2] * (0.0 if dist.get_rank() == 1 else 1.0)
    x, y, w = data()
    w = torch.where((torch.arange(8) >= 5), 0.0, w)
    close(parallel(net, (*given[:2], weights)).gradient(net), lg.Objective(net, LOSS, (x, y, w)).gradient(net))


def check_methods_leave_the_same_on_all():
    net = network(3)
    for method in (lg.TrustRegion(), lg.FirstOrder(lg.optimisers.Adam(), 0.1), lg.NewtonCG()):
        options = {"method": method, "max_steps": 4}
        whole = lg.minimize(lg.Objective(net, LOSS, data(), l2=0.1), net, **options)
        run = lg.minimize(parallel(net, mine(*data()), l2=0.1), net, **options)
        close(run.params, whole.params, 1e-8)
        same_everywhere(run.params)


def check_optimisers_of_wrapped_modules():
    net, alone = network(), network()
    opt, other = (optim.LevenbergMarquardt(m, LOSS) for m in (nn.parallel.DistributedDataParallel(net), alone))
    for _ in range(3):
        close(opt.step(mine(*data())), other.step(data()))
    close(dict(net.named_parameters()), dict(alone.named_parameters()), 1e-9)
    kept, weights = opt.state_dict(), {n: p.clone() for n, p in net.state_dict().items()}
    opt.step(mine(*data()))
    ends = {n: p.clone() for n, p in net.state_dict().items()}
    net.load_state_dict(weights)
    opt.load_state_dict(kept)
    opt.step(mine(*data()))
    same_everywhere(net.state_dict())
    close(dict(net.state_dict()), ends, 0.0)


def check_a_failure_of_all_leaves_them_in_step():
    fit = parallel(network(), mine(*data()))
    lost = {name: p * float("nan") for name, p in network().named_parameters()}
    assert "NaN" in raised(ValueError, lambda: fit.value(lost))
    assert "NaN" in raised(ValueError, lambda: lg.GGN(fit, lost) @ network())
    close(fit.gradient(network()), lg.Objective(network(), LOSS, data()).gradient(network()))


def check_a_failure_of_one_is_told_to_all():
    group, rank, begun = dist.new_group(), dist.get_rank(), time.monotonic()
    calls = []

    def model(params, x):
        calls.append(1)
        if rank == 1 and len(calls) > 2:
            raise KeyError("no such feature")
        return torch.func.functional_call(net, params, (x,))

    net = network()
    params = {name: p.detach() for name, p in net.named_parameters()}
    fit = parallel(model, mine(*data()), group)

    def ask():
        return [fit.value({name: (1 + i) * p for name, p in params.items()}) for i in range(9)]

    if rank == 1:
        assert "no such feature" in raised(KeyError, ask)
    else:
        message = raised(lg.distributed.OtherProcessError, ask)
        assert f"process 1 of {dist.get_world_size()} raised KeyError: 'no such feature'" in message
    assert time.monotonic() - begun < 10
    dist.barrier()
    calls[:] = []
    assert "out of step" in raised(lg.distributed.OtherProcessError, lambda: fit.value(params))


def check_doors_that_one_does_not_pass_are_told():
    rank, net = dist.get_rank(), network()
    normed = nn.Sequential(network(), nn.BatchNorm1d(2).double()).train(rank == 1)

    def asked(group, ask):
        fit, begun = parallel(net, mine(*data()), group), time.monotonic()
        message = raised((ValueError, TypeError, RuntimeError), lambda: ask(fit))
        assert time.monotonic() - begun < 10
        assert rank == 1 or "process 1 of" in message, message

    def product(fit):
        return lg.GGN(fit, net)

    x, y, w = mine(*data())
    wrong = torch.ones(3 if rank == 1 else 26, dtype=torch.float64)
    for ask in (
        lambda fit: lg.minimize(fit, net, 3 if rank == 1 else None),
        lambda fit: lg.solve(product(fit), net, 3 if rank == 1 else None),
        lambda fit: lg.solve(product(fit), wrong),
        lambda fit: lg.krylov(product(fit), wrong, 3),
        lambda fit: lg.trace(product(fit), "none" if rank == 1 else "exact"),
        lambda fit: lg.eigsh(product(fit), 99 if rank == 1 else 2),
        lambda fit: lg.start(3 if rank == 1 else lg.NewtonCG(), fit, net),
        lambda fit: parallel(normed, (x, y, w), fit.reduce.group).value(normed),
    ):
        asked(dist.new_group(), ask)


def check_a_failure_within_a_failure_is_one():
    """As where a run ends, and writing its last state fails as well: it is told once, and nobody waits for another."""
    fit, begun = parallel(network(), mine(*data()), dist.new_group()), time.monotonic()

    def twice():
        with fit.reduce.telling():
            try:
                with fit.reduce.telling():
                    raise KeyError("first")
            except KeyError:
                raise ValueError("second")  # noqa: B904

    if dist.get_rank() == 0:
        raised(ValueError, twice)
    else:
        assert "first" in raised(lg.distributed.OtherProcessError, lambda: fit.value(network()))
    assert "new objectives" in raised(lg.distributed.OtherProcessError, lambda: fit.value(network(1)))
    assert time.monotonic() - begun < 10


def check_a_watcher_that_raises_ends_all():
    group, rank = dist.new_group(), dist.get_rank()
    fit = parallel(network(), mine(*data()), group)

    def watch(look):
        if rank == 0 and look.step == 2:
            raise RuntimeError("the disk is full")

    def ask():
        return lg.minimize(fit, network(), max_steps=9, watch=[watch])

    message = raised(RuntimeError, ask)
    assert "the disk is full" in message
    assert rank == 0 or "process 0" in message


def check_a_watcher_that_stops_one_stops_all():
    fit = parallel(network(), mine(*data()))
    last = dist.get_rank() == dist.get_world_size() - 1
    run = lg.minimize(fit, network(), max_steps=9, watch=[lg.stop_when(lambda look: last and look.step == 3)])
    assert (run.steps, run.status.name) == (3, "STOPPED")


def check_data_that_change_on_one_are_refused_on_all():
    group, rank = dist.new_group(), dist.get_rank()
    x, y, w = data()

    class Loader:
        def __iter__(self):
            return iter([(x + (torch.rand(1, dtype=x.dtype) if rank == 1 else 0), y, w)])

    fit = parallel(network(), Loader(), group)
    assert "the data changed between two passes" in raised(
        (ValueError, lg.distributed.OtherProcessError), lambda: [fit.value(network(i)) for i in range(4)]
    )


def check_parameters_that_differ_are_refused():
    net = network(dist.get_rank())
    fit = parallel(net, mine(*data()))
    assert "not the same on all processes" in raised(ValueError, lambda: fit.value(net))
    deeper = nn.Sequential(network(), nn.Linear(2, 2).double()) if dist.get_rank() else network()
    fit = parallel(deeper, mine(*data()))
    assert "do not have the same parameters" in raised(ValueError, lambda: fit.value(deeper))


def check_batch_norm_in_training_mode_is_refused():
    net = nn.Sequential(network(), nn.BatchNorm1d(2).double())
    x, y, w = (torch.cat([part, part]) for part in data())
    assert "BatchNorm1d in training mode" in raised(ValueError, lambda: parallel(net, (x, y, w)))
    fit = parallel(net.eval(), mine(*data()))
    close(fit.gradient(net), lg.Objective(net, LOSS, data()).gradient(net))
    net.train()
    assert "BatchNorm1d in training mode" in raised(ValueError, lambda: fit.gradient(net))
    both = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert "SyncBatchNorm in training mode, which has no second" in raised(
        ValueError, lambda: parallel(both, (x, y, w))
    )


def check_a_group_of_some():
    group = dist.new_group([0, 1])
    if dist.get_rank() > 1:
        assert "not in the group" in raised(ValueError, lambda: parallel(network(), mine(*data()), group))
        return
    net, rank = network(), dist.get_rank()
    fit = parallel(net, tuple(x[rank::2] for x in data()), group)
    close(fit.gradient(net), lg.Objective(net, LOSS, data()).gradient(net))


def check_derivatives_of_solves_are_refused():
    net = network()
    fit = parallel(net, mine(*data()))
    params = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}

    def ask():
        A = lg.Damped(lg.GGN(fit, params), 0.1)
        lg.solve(A, A.domain.random(0), lg.CG(steps=3)).x.sum().backward()

    assert "no derivative here" in raised(NotImplementedError, ask)
    reduction = fit.reduce
    x = torch.ones(3, requires_grad=True) * 2
    assert "no derivative here" in raised(NotImplementedError, lambda: reduction.sum(lg.load("torch"), [x]))


def check_single_precision():
    net = network().float()
    fit = parallel(net, mine(*(x.float() for x in data())))
    whole = lg.Objective(net, LOSS, tuple(x.float() for x in data()))
    close(fit.gradient(net), whole.gradient(net), 1e-5)
    half = network().bfloat16()
    close(
        parallel(half, mine(*(x.bfloat16() for x in data()))).gradient(half),
        lg.Objective(half, LOSS, tuple(x.bfloat16() for x in data())).gradient(half),
        0.05,
    )


def check_a_checkpoint_is_of_the_first():
    path = Path(os.environ["LINOP_GN_TEST_FOLDER"]) / "checkpoint"
    fit, method = parallel(network(), mine(*data()), l2=0.1), lg.LevenbergMarquardt()
    run = lg.minimize(fit, network(), method, max_steps=3, checkpoint=path)
    again = lg.minimize(fit, network(), method, max_steps=5, checkpoint=path)
    assert (run.steps, again.steps) == (3, 5)
    dist.barrier()  # or the first is ahead
    alone = lg.minimize(lg.Objective(network(), LOSS, data(), l2=0.1), network(), method, max_steps=5)
    close(again.params, alone.params, 1e-8)
    state = lg.load_state(path, method, lg.Objective(network(), LOSS, data(), l2=0.1), network())
    close(state.params, again.params, 0.0)


def check_a_process_that_ends_is_missed():
    """The last check: one of them is gone then."""
    group, last = dist.new_group(), dist.get_world_size() - 1
    fit = parallel(network(), mine(*data()), group)
    fit.value(network())
    if dist.get_rank() == last:
        return
    message = raised(lg.distributed.OtherProcessError, lambda: fit.value(network(1)))
    assert "lost the others" in message


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def run(rank, size, folder, checks="process_checks", names=None):
    """Run the checks of a module, or of several, apart by a space; or those with these names."""
    torch.set_num_threads(1)
    os.environ["LINOP_GN_TEST_FOLDER"] = folder
    init = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    found = {}
    modules = [importlib.import_module(module).CHECKS for module in checks.split()]
    for name, check in chain.from_iterable(of.items() for of in modules):
        if names is not None and name not in names:
            continue
        begun = time.monotonic()
        try:
            check()
            found[name] = ""
        except BaseException:
            found[name] = traceback.format_exc()
        found[f"seconds of {name}"] = time.monotonic() - begun
        with open(f"{folder}/found{rank}", "wb") as file:
            pickle.dump(found, file)
        if found[name]:
            break  # the processes are out of step
    os._exit(0)
