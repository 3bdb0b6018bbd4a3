"""What each of several gloo processes checks of parameters that are DTensors; run by ``process_checks.run``."""

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from linop_gn_torch import gathering
from process_checks import FULL, LOSS, Again, close, data, mine, parallel, raised
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

import linop_gn as lg

gathering.FEW = 0  # leaves of these models go one by one


def network():
    """Its 13 rows torch cuts in four as 4, 4, 4, 1, and its 2 as 1, 1, 0, 0."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 13), nn.Tanh(), nn.Linear(13, 2)).double()


def plain():
    return {name: p.detach() for name, p in network().named_parameters()}


def spread(tree, mesh=None, placements=None):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if mesh is None else mesh
    placements = placements or [Shard(0)]
    return {name: distribute_tensor(x, mesh, placements) for name, x in tree.items()}


def whole(tree, like=None):
    """The tree gathered; it must lie as the parameters do."""
    for name, x in tree.items():
        assert isinstance(x, DTensor)
        assert x.placements == (like[name].placements if like else (Shard(0),)), name
    return {name: x.full_tensor() for name, x in tree.items()}


def both(l2=0.1):
    """An objective of all data on each process, as in a single one, and beside it that of shares."""
    one = lg.Objective(network(), LOSS, data(), l2=l2)
    return one, (one, parallel(network(), mine(*data()), l2=l2))


class Collectives:
    """Which ones are begun, and how many numbers each takes."""

    NAMES = (
        "all_reduce",
        *(("all_gather_single",) if hasattr(dist, "all_gather_single") else ("all_gather_into_tensor",)),
        *(("reduce_scatter_single",) if hasattr(dist, "reduce_scatter_single") else ("reduce_scatter_tensor",)),
        "broadcast",
    )

    def __enter__(self):
        self.sent, self._plain = [], {name: getattr(dist, name) for name in self.NAMES}
        for name, function in self._plain.items():
            setattr(dist, name, self._counting(name, function))
        return self.sent

    def _counting(self, name, function):
        def counting(x, *args, **options):
            self.sent.append((name, max([x.numel(), *(y.numel() for y in args if isinstance(y, torch.Tensor))])))
            return function(x, *args, **options)

        return counting

    def __exit__(self, *exc):
        for name, function in self._plain.items():
            setattr(dist, name, function)


# checks


def check_products():
    one, fits = both()
    D, P = spread(plain()), plain()
    for fit in fits:
        close(fit.value(D), one.value(P))
        close(whole(fit.gradient(D)), one.gradient(P))
        for kind in (lg.GGN, lg.Hessian, *((lg.BlockGGN, lg.EmpiricalFisher) if fit.reduce else ())):
            v = kind(one, P).domain.unpack(kind(one, P).domain.random(0))
            close(whole(kind(fit, D) @ spread(v)), kind(one, P) @ v)
            close(whole(kind(fit, D) @ v), kind(one, P) @ v)


def check_other_placements():
    one, fits = both()
    P, size = plain(), dist.get_world_size()
    v = lg.GGN(one, P).domain.unpack(lg.GGN(one, P).domain.random(1))
    made = [spread(P, None, [Replicate()])]
    if size == 4:
        mesh = init_device_mesh("cpu", (2, 2))
        made += [spread(P, mesh, [Replicate(), Shard(0)]), spread(P, mesh, [Shard(0), Shard(0)])]
        made += [{k: distribute_tensor(x, mesh, [Shard(0), Shard(x.ndim - 1)]) for k, x in P.items()}]
    for D in made:
        for fit in fits:
            close(whole(fit.gradient(D), D), one.gradient(P))
            close(whole(lg.GGN(fit, D) @ v, D), lg.GGN(one, P) @ v)


def check_solvers():
    one, fits = both()
    D, P = spread(plain()), plain()
    B, h = lg.Damped(lg.GGN(one, P), 0.1), one.gradient(P)
    ends = {"rtol": 1e-10} if FULL else {"steps": 6}
    divided = lg.CG(**ends, preconditioner=lg.preconditioners.Jacobi())
    sketched = lg.CG(**ends, preconditioner=lg.preconditioners.Nystrom(12))
    methods = (lg.LSMR(**({} if FULL else ends)), divided), (sketched, lg.MINRES(**ends))
    for fit, chosen in zip(fits, methods, strict=True):
        A, g = lg.Damped(lg.GGN(fit, D), 0.1), fit.gradient(D)
        for method in chosen:
            found, wanted = lg.solve(A, g, method), lg.solve(B, h, method)
            close(whole(found.x), wanted.x, 1e-6 if method is methods[0][0] else 1e-8)
            assert abs(found.steps - wanted.steps) <= 1
    close(whole(lg.krylov(A, g, 5).solve(0.1).x), lg.krylov(B, h, 5).solve(0.1).x, 1e-8)


def check_blocks_side_by_side():
    one, fits = both()
    D, P = spread(plain()), plain()
    h, two = one.gradient(P), {"odd": ["0.weight", "2.bias"], "even": ["0.bias", "2.weight"]}
    spoiled = h | {"0.bias": h["0.bias"] * torch.where(torch.arange(13) == 7, float("nan"), 1.0)}  # of one process
    for fit, blocks, method in zip(fits, ("leaf", two), (lg.CG(rtol=1e-10), lg.MINRES(rtol=1e-10)), strict=True):
        A, B = (lg.Damped(lg.BlockGGN(f, p, blocks=blocks), 0.1) for f, p in ((fit, D), (one, P)))
        for b in (h, spoiled):
            found, wanted = (lg.solve(operator, b, lg.Blockwise(method)) for operator in (A, B))
            close(whole(found.x), wanted.x, 1e-8)
            assert (found.blocks, found.status) == (wanted.blocks, wanted.status)
            assert abs(found.steps - wanted.steps).max() <= 1
    g = fit.gradient(D)
    with Collectives() as sent:
        A @ g
    product = len(sent)
    with Collectives() as sent:
        lg.solve(A, g, lg.Blockwise(lg.CG(steps=2)))
    few = len(sent)
    with Collectives() as sent:
        lg.solve(A, g, lg.Blockwise(lg.CG(steps=5)))
    assert len(sent) - few == 3 * (product + 2)  # and two of a number for each block


def check_layerwise_training():
    one, fits = both()
    method = lg.LayerwiseGaussNewton(0.1, lg.Blockwise(lg.CG(rtol=1e-12, keep=1.3, max_steps=50)))
    wanted = lg.minimize(one, plain(), method, max_steps=4)
    for fit in fits:
        run = lg.minimize(fit, spread(plain()), method, max_steps=4)
        close(whole(run.params), wanted.params, 1e-8)


def check_qr_of_columns():
    """Of full rank, of dependent columns, of zeros, and of fewer entries on a process than there are columns."""
    ops, space = lg.load("torch"), lg.Space.of(spread(plain()))
    mixed = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    small = lg.Space.of(spread({"0.bias": plain()["0.bias"]})).random(0, 9)
    for Y in (space.random(0, 5), ops.combine(space.random(1, 2).T, mixed, 2), space.zeros(3), small):
        Q, R = ops.qr(Y)
        assert Q.placements == Y.placements
        assert type(R) is torch.Tensor
        Q, Y = Q.full_tensor(), Y.full_tensor()
        close(Q @ R, Y, 1e-13)
        close(R, R.triu(), 1e-14)
        rank = int(torch.linalg.matrix_rank(Y))
        close(Q[:, :rank].T @ Q[:, :rank], torch.eye(rank, dtype=Y.dtype), 1e-13)
        assert not Q[Y.abs().sum(1) == 0].any()


def check_preconditioners_and_estimates():
    one, fits = both()
    D, P = spread(plain()), plain()
    recipes = lg.preconditioners.Nystrom(12), lg.preconditioners.Nystrom(100)
    B, h = lg.Damped(lg.GGN(one, P), 0.1), one.gradient(P)
    for fit, recipe in zip(fits, recipes, strict=True):
        A, g = lg.Damped(lg.GGN(fit, D), 0.1), fit.gradient(D)
        method = lg.CG(rtol=1e-10, preconditioner=recipe)
        found, wanted = lg.solve(A, g, method), lg.solve(B, h, method)
        close(whole(found.x), wanted.x, 1e-8)
        assert abs(found.steps - wanted.steps) <= 1
        methods = (12, "hutch++"), (12, "xtrace"), (12, "auto")
        for products, name in methods[: 3 if fit is fits[1] else 1]:
            found, wanted = (lg.trace(G, name, products=products).value for G in (A, B))
            assert abs(found - wanted) < 1e-9 * abs(wanted), name
    for name in ("xdiag", "xnysdiag"):
        found, wanted = (G.domain.unpack(lg.diagonal(G, name, products=12).value) for G in (A, B))
        close(whole(found), wanted, 1e-9)


def check_copies_that_differ_are_refused():
    if dist.get_world_size() < 4:
        return
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2))
    for placements in ([Replicate(), Shard(0)], [Shard(0), Replicate()], [Replicate(), Replicate()]):
        made = spread(plain(), mesh, placements)
        x = made["0.bias"]
        other = x.to_local() + (dist.get_rank() == 1)
        drifted = made | {
            "0.bias": DTensor.from_local(other, mesh, placements, run_check=False, shape=x.shape, stride=(1,))
        }
        for fit in both()[1]:
            for ask in (fit.value, fit.gradient):
                assert "should have the same shards" in raised(ValueError, lambda ask=ask, at=drifted: ask(at))


def check_training():
    one, fits = both()
    for fit, method, steps in zip(fits, (lg.TrustRegion(), lg.LevenbergMarquardt()), (4, 10), strict=True):
        wanted = lg.minimize(one, plain(), method, max_steps=steps)
        run = lg.minimize(fit, spread(plain()), method, max_steps=steps)
        close(whole(run.params), wanted.params, 1e-8)
        assert run.steps == wanted.steps


MIXED = {
    "0.weight": ([Shard(0)], [Replicate(), Shard(0)]),
    "0.bias": (None, None),
    "2.weight": ([Shard(1)], [Shard(1), Shard(0)]),
    "2.bias": ([Replicate()], [Shard(0), Replicate()]),
    "scale": ([Replicate()], [Replicate(), Replicate()]),
    "heat": (None, None),
    "nothing": ([Shard(1)], [Shard(1), Shard(0)]),
}
"""Leaves that are sharded, copied, plain, numbers, and without entries, on a mesh of one axis and of two."""


def mixed(mesh=None):
    """The leaves as they are, and over a mesh."""
    number = torch.tensor(0.7, dtype=torch.float64)
    whole = plain() | {"scale": number, "heat": 0.1 * number, "nothing": torch.ones(0, 2, dtype=torch.float64)}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if mesh is None else mesh
    placed = {name: of[mesh.ndim - 1] for name, of in MIXED.items()}
    return whole, {k: x if placed[k] is None else distribute_tensor(x, mesh, placed[k]) for k, x in whole.items()}


def scaled(params, x):
    assert params["scale"].shape == params["heat"].shape == ()
    net = {name: p for name, p in params.items() if "." in name}
    made = torch.func.functional_call(network(), net, (x * params["scale"],))
    return made * params["heat"].exp() + params["nothing"].sum()


def as_given(tree, like):
    """The tree gathered; its leaves must be such as those of the parameters."""
    for name, x in tree.items():
        assert (type(x), x.shape) == (type(like[name]), like[name].shape), name
        assert not isinstance(x, DTensor) or x.placements == like[name].placements, name
    return {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in tree.items()}


def check_copies_among_shards():
    one, fit = lg.Objective(scaled, LOSS, data(), l2=0.1), parallel(scaled, mine(*data()), l2=0.1)
    meshes = [None, init_device_mesh("cpu", (2, 2))] if dist.get_world_size() == 4 else [None]
    for mesh, objective in zip(meshes, (fit, one), strict=False):
        P, D = mixed(mesh)
        close(as_given(objective.gradient(D), D), one.gradient(P))
        space, alone = lg.Space.of(D), lg.Space.of(P)
        close(as_given(space.unpack(space.random(0)), D), alone.unpack(alone.random(0)), 0.0)
        for kind in (lg.GGN, lg.BlockGGN):
            G = kind(one, P)
            v = G.domain.unpack(G.domain.random(0))
            made = kind(objective, D) @ v
            close(as_given(made, D), G @ v)
            close(as_given(kind(objective, D) @ made, D), G @ (G @ v))
        method = lg.Blockwise(lg.CG(rtol=1e-10))  # a block for the leaf without entries, too
        A, B = (lg.Damped(lg.BlockGGN(f, at, blocks="leaf"), 0.5) for f, at in ((objective, D), (one, P)))
        found, wanted = lg.solve(A, one.gradient(P), method), lg.solve(B, one.gradient(P), method)
        close(as_given(found.x, D), wanted.x, 1e-8)
        assert (found.blocks, found.status) == (wanted.blocks, wanted.status)
    P, D = mixed()
    drifted = D | {"heat": D["heat"] + (dist.get_rank() == 1)}
    for objective in (one, fit):
        assert "should have the same" in raised(ValueError, lambda objective=objective: objective.value(drifted))


def check_bases_in_files():
    """Those of a trust region's process, (k, n): in the order of the leaves, a vector after the other."""
    path, one = Path(os.environ["LINOP_GN_TEST_FOLDER"]) / "basis", lg.Objective(scaled, LOSS, data(), l2=0.1)
    method = lg.TrustRegion(descent=lg.descents.TrustRegion(lg.GLTR(max_steps=6)))
    P, D = mixed()
    state, alone = lg.start(method, one, D), lg.start(method, one, P)
    lg.save_state(path, state)
    dist.barrier()
    again = lg.load_state(path, method, one, D).own.kept.run.lanczos.basis
    assert again.placements == state.own.kept.run.lanczos.basis.placements
    assert torch.equal(again.to_local()[0], state.own.kept.run.lanczos.basis.to_local()[0])
    close(lg.load_state(path, method, one, P).own.kept.run.lanczos.basis[0], alone.own.kept.run.lanczos.basis[0])


def check_runs_of_copies_among_shards():
    path, o = Path(os.environ["LINOP_GN_TEST_FOLDER"]) / "mixed", lg.optimisers
    one, fit = lg.Objective(scaled, LOSS, data(), l2=0.1), parallel(scaled, mine(*data()), dist.new_group(), l2=0.1)
    P, D = mixed()
    method = lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-12))
    wanted, run = lg.minimize(one, P, method, max_steps=4), lg.minimize(fit, D, method, max_steps=4)
    close(as_given(run.params, D), wanted.params, 1e-8)
    each = lg.FirstOrder(o.Groups({"nets": "*.*", "others": "*"}, {"nets": o.Adam(), "others": o.SGD()}), rate=0.1)
    grouped, alone = lg.minimize(one, D, each, max_steps=2), lg.minimize(one, P, each, max_steps=2)
    close(as_given(grouped.params, D), alone.params, 1e-8)
    lg.minimize(fit, D, method, max_steps=2, checkpoint=path)
    again = lg.minimize(fit, D, method, max_steps=4, checkpoint=path)
    for x, y in zip(as_given(again.params, D).values(), as_given(run.params, D).values(), strict=True):
        assert torch.equal(x, y)
    if dist.get_rank() == 0:
        close(lg.load_state(path, method, one, P).params, wanted.params, 1e-8)

    def ends(look):
        if dist.get_rank() == 1 and look.step == 2:
            raise KeyError("enough")

    begun = time.monotonic()
    kind = KeyError if dist.get_rank() == 1 else lg.distributed.OtherProcessError
    assert "enough" in raised(kind, lambda: lg.minimize(fit, D, method, max_steps=4, watch=[ends], every=1))
    assert time.monotonic() - begun < 50  # what is left of the run asks nobody for copies


def check_two_of_them():
    mesh = DeviceMesh("cpu", [0, 1])
    if dist.get_rank() > 1:
        return
    one, D, P = both()[0], spread(plain(), mesh), plain()
    fit = parallel(network(), tuple(x[5:] if dist.get_rank() else x[:5] for x in data()), mesh.get_group(), l2=0.1)
    v = lg.GGN(one, P).domain.unpack(lg.GGN(one, P).domain.random(0))
    for objective in (one, fit):
        close(whole(lg.GGN(objective, D) @ v), lg.GGN(one, P) @ v)
    run = lg.minimize(fit, D, max_steps=10, watch=[lg.stop_when(lambda look: False)])
    close(whole(run.params), lg.minimize(one, P, max_steps=10).params, 1e-8)


def check_collectives_are_counted():
    _, fits = both(None)
    D = spread(plain())
    size = dist.get_world_size()
    rows = -(-13 // size), -(-2 // size)
    leaves = [size * entries for entries in (3 * rows[0], rows[0], 13 * rows[1], rows[1])]  # with what fills them up
    for fit in fits:
        shared = fit.reduce is not None
        G = lg.GGN(fit, D)
        g = fit.gradient(D)
        # v in J v, the weights of the second layer in J v and J^T u, and what comes of this
        product = [(Collectives.NAMES[1], count) for count in (*leaves, leaves[2], leaves[2])]
        product += [(Collectives.NAMES[2], count) for count in leaves] * shared
        for operator in (G, lg.BlockGGN(fit, D)):
            close(operator @ g, operator @ g)  # the first one looks where it goes
            with Collectives() as sent:
                operator @ g
            assert sorted(sent) == sorted(product)
        with Collectives() as sent:
            lg.solve(lg.Damped(G, 0.1), g, lg.CG(steps=3))
        few = len(sent)
        with Collectives() as sent:
            lg.solve(lg.Damped(G, 0.1), g, lg.CG(steps=7))
        assert len(sent) - few == 4 * (len(product) + 2)  # and two inner products
        counts = []
        for steps in (3, 7):
            with Collectives() as sent:
                lg.solve(lg.Damped(G, 0.1), g, lg.CG(steps=steps, reductions=1))
            counts.append(len(sent))
        assert counts[1] - counts[0] == 4 * (len(product) + 1)  # and five inner products at once
        assert max(number for _, number in sent) == max(leaves)


def check_a_run_of_four_processes_goes_on_with_two_and_with_one():
    """Files hold vectors in the order of the leaves, and one process writes them."""
    one, fits = both()
    folder, rank, P = Path(os.environ["LINOP_GN_TEST_FOLDER"]), dist.get_rank(), plain()
    methods = lg.FirstOrder(rate=0.01), lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-12))
    two = DeviceMesh("cpu", [0, 1])
    for i, (fit, method) in enumerate(zip(fits, methods, strict=True)):
        wanted = lg.minimize(both()[0], P, method, max_steps=5)
        path = folder / f"run {i}"
        lg.minimize(fit, spread(P), method, max_steps=3, checkpoint=path, every=None if i else 2)
        again = {name: path.with_name(f"{path.name} on {name}") for name in ("four", "two", "one")}
        if rank == 0:
            for copy in again.values():
                copy.write_bytes(path.read_bytes())
        dist.barrier()
        on_four = lg.minimize(fit, spread(P), method, max_steps=5, checkpoint=again["four"])
        close(whole(on_four.params), wanted.params, 1e-9)
        if rank < 2:
            rows = slice(None) if fit is one else slice(rank, None, 2)
            halves = lg.Objective(network(), LOSS, tuple(x[rows] for x in data()), l2=0.1)
            halves = halves if fit is one else lg.distributed.DataParallel(halves, two.get_group())
            on_two = lg.minimize(halves, spread(P, two), method, max_steps=5, checkpoint=again["two"])
            close(whole(on_two.params), wanted.params, 1e-9)
        if rank == 0:
            on_one = lg.minimize(both()[0], P, method, max_steps=5, checkpoint=again["one"])
            close(on_one.params, wanted.params, 1e-9)
            assert (on_four.steps, on_one.steps) == (5, 5)
        assert not list(folder.glob("*.new"))
        lg.save_state(folder / "state", on_four.state)
        dist.barrier()
        state = lg.load_state(folder / "state", method, fit, spread(P))
        assert {k: x.placements for k, x in state.params.items()} == {k: x.placements for k, x in spread(P).items()}
        close(whole(state.params), whole(on_four.params), 0.0)
        dist.barrier()


def check_what_each_process_holds():
    D = spread(plain())
    fit = both()[1][1]
    x = lg.GGN(fit, D).domain.random(0)
    own = sum(p.to_local().numel() for p in D.values())
    assert x.to_local().numel() == max(-(-13 // dist.get_world_size()) * 4 + -(-2 // dist.get_world_size()) * 14, own)


def check_fully_sharded_modules():
    one, fits = both()
    sharded = network()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(sharded[0], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for fit in fits:
        close(whole(fit.gradient(sharded)), one.gradient(plain()))
        run = lg.minimize(fit, sharded, max_steps=3)
        close(whole(run.params), lg.minimize(one, plain(), max_steps=3).params, 1e-8)
    assert "without fully_shard" in raised(TypeError, lambda: lg.Objective(sharded, LOSS, data()).value(plain()))
    with torch.no_grad():
        for name, p in sharded.named_parameters():
            p.copy_(run.params[name])
    close(sharded(data()[0]), torch.func.functional_call(network(), whole(run.params), (data()[0],)))


def check_what_is_refused():
    one, (_, fit) = both()
    D = spread(plain())
    G, g = lg.Damped(lg.GGN(one, D), 0.1), one.gradient(D)
    for method in (lg.Cholesky(), lg.GramSolve()):
        assert "p.full_tensor() of each" in raised(ValueError, lambda method=method: lg.solve(G, g, method))
    assert "in the order of the devices" in raised(ValueError, lambda: lg.Space.of(D).slices)
    assert "KFAC has no blocks" in raised(ValueError, lambda: lg.KFAC(one, D) @ g)
    assert "give a tree like" in raised(ValueError, lambda: G @ torch.ones(lg.Space.of(D).width, dtype=torch.float64))
    exact = lg.preconditioners.EmpiricalFisher(probes=None)
    assert "sum of squares" in raised(ValueError, lambda: exact(lg.GGN(fit, D)))
    bad = D | {"0.bias": D["0.bias"] * float("nan"), "2.weight": D["2.weight"] / 0.0}
    assert "infinity in ['0.bias', '2.weight']" in raised(ValueError, lambda: one.value(bad))
    path = Path(os.environ["LINOP_GN_TEST_FOLDER"]) / "seen by one"
    lg.save_state(path, lg.start(lg.FirstOrder(), one, D))
    for objective in (one, fit):
        seen = path if dist.get_rank() == 0 else path.with_name("seen by none")
        message = raised(ValueError, lambda: lg.minimize(objective, D, lg.FirstOrder(), checkpoint=seen))  # noqa: B023
        assert "others find none" in message
    assert "with blocks, and" in raised(ValueError, lambda: lg.solve(G, g, lg.Blockwise()))
    bare = lg.Objective(network(), LOSS, data())
    assert "LeastSquares needs vectors in one" in raised(
        ValueError, lambda: lg.minimize(bare, D, lg.methods.LeastSquares())
    )
    ops, x = lg.load("torch"), lg.Space.of(D).random(0)
    astray = x.redistribute(placements=[Replicate()])
    for ask in (lambda: ops.dot(x, astray), lambda: ops.axpy(1.0, astray, ops.copy(x)), lambda: G.apply(astray)):
        assert "Bring it into the layout" in raised(ValueError, ask)
    stream = parallel(network(), Again([mine(*data())]))
    assert "hold the batches in a list" in raised(ValueError, lambda: stream.value(D))
    none = parallel(network(), [mine(*data())] * (dist.get_rank() == 0), dist.group.WORLD)
    assert "a process has no batch" in raised(ValueError, lambda: none.value(D))
    group = dist.new_group([0, 1])
    if dist.get_rank() < 2 < dist.get_world_size():
        some = parallel(network(), data(), group)
        assert "use a mesh of these processes" in raised(ValueError, lambda: some.value(D))


def check_functions_that_call_sharded_modules_are_refused():
    sharded = network()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    one = lg.Objective(lambda params, x: sharded(x), LOSS, data())
    assert "without fully_shard" in raised(TypeError, lambda: one.value(plain()))
    close(sharded(data()[0]), network()(data()[0]))  # it is as it was


def check_a_failure_of_one_is_told_to_all():
    calls = []

    def model(params, x):
        calls.append(1)
        if dist.get_rank() == 1 and len(calls) > 2:
            raise KeyError("no such feature")
        return torch.func.functional_call(network(), params, (x,))

    fit, D = parallel(model, mine(*data()), dist.new_group()), spread(plain())

    def ask():
        return [fit.gradient({name: (1 + i) * p for name, p in D.items()}) for i in range(5)]

    kind = KeyError if dist.get_rank() == 1 else lg.distributed.OtherProcessError
    assert "no such feature" in raised(kind, ask)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}
