"""Products by programs: the same numbers as eager ones, from one trace, and eager ones where no program can be."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from linop_gn_torch import added, backend, compiled, programs
from systems import FULL, in_full
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import linop_gn as lg
from linop_gn.curvature.losses import parts

from ...support.peaks import allocations

CE, SE = lg.losses.CrossEntropy(), lg.losses.SquaredError()


@pytest.fixture(autouse=True)
def without_inductor(monkeypatch):
    """Programs are run as they were traced: what inductor makes of them takes seconds."""
    torch.manual_seed(0)
    monkeypatch.setattr(programs, "COMPILER", "eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix, self.norm, self.out = (
            nn.Embedding(7, 6),
            nn.Linear(6, 18),
            nn.LayerNorm(6),
            nn.Linear(6, 3),
        )

    def forward(self, tokens):
        x = self.table(tokens)
        q, k, v = self.mix(self.norm(x)).chunk(3, dim=-1)
        return self.out(x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        y = torch.zeros(len(x), 3)
        y[:, 0] = self.a(x)[:, 1].sin()
        y += self.a(x).mul_(2).relu_()
        return y.add_(1)


def dense(*middle):
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Linear(5, 3))


def conv():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3))


NETWORKS = {
    "norms": lambda: (dense(nn.LayerNorm(5), nn.GELU(), nn.BatchNorm1d(5)), torch.randn(6, 4)),
    "conv": lambda: (conv(), torch.randn(6, 1, 6, 6)),
    "attention": lambda: (Attention(), torch.randint(7, (2, 5))),
    "tied": lambda: (Tied(), torch.randn(6, 4)),
    "in place": lambda: (InPlace(), torch.randn(6, 4)),
    "weight norm": lambda: (dense(torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))), torch.randn(6, 4)),
    "one leaf": lambda: (nn.Linear(4, 3, bias=False), torch.randn(6, 4)),
}


def pair(model, loss, data, **options):
    """The same objective twice, the second compiled."""
    return lg.Objective(model, loss, data, **options), lg.Objective(model, loss, data, compile=True, **options)


def traced(objective):
    """How often a function was traced for it."""
    return objective.programs.of(backend).traced


def require_same(make, eager, compiled, params, tol=1e-12):
    A, B = make(eager, params).prepare(), make(compiled, params).prepare()
    v, u = (torch.randn(space.size, dtype=getattr(torch, space.dtype)) for space in (A.domain, A.codomain))
    for got, want in ((B.matvec(v), A.matvec(v)), (B.rmatvec(u), A.rmatvec(u))):
        torch.testing.assert_close(got, want, rtol=tol, atol=tol * float(want.abs().max()))


def blocks(objective, params):
    return lg.BlockGGN(objective, params, blocks="leaf")


def double(model):
    return model.double(), {name: p.detach() + 0.1 for name, p in model.named_parameters()}


def small():
    """A function, which is traced in a moment, and parameters."""
    w = torch.randn(4, 3, dtype=torch.float64)
    return (lambda p, x: torch.tanh(x @ p["w"]) * p["s"]), {"w": w, "s": w[0] + 2}


def data(n=6, dtype=torch.float64):
    return torch.randn(n, 4, dtype=dtype), torch.randint(3, (n,))


@pytest.mark.parametrize("name", ["in place", *(pytest.param(n, marks=in_full) for n in NETWORKS if n != "in place")])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=in_full)])
def test_products_are_those_of_the_eager_objective(name, dtype):
    model, x = NETWORKS[name]()
    model, x = model.to(dtype), x.to(dtype) if x.is_floating_point() else x
    params = {k: p.detach() + 0.1 for k, p in model.named_parameters()}
    z = torch.func.functional_call(copy.deepcopy(model), params, (x,))
    eager, compiled = pair(model, CE, (x, torch.randint(z.shape[-1], z.shape[:-1])))
    for make in (lg.GGN, lg.Hessian, lg.Jacobian):
        require_same(make, eager, compiled, params, 1e-4 if dtype is torch.float32 else 1e-10)
    torch.testing.assert_close(compiled.value_and_gradient(params), eager.value_and_gradient(params))
    assert traced(compiled) == 2


def test_all_operators_and_columns():
    model, params = small()
    eager, compiled = pair(model, CE, (*data(), torch.tensor([1.0, 2, 0, 1, 1, 3], dtype=torch.float64)))
    for make in (lg.GGN, lg.Hessian, lg.Jacobian, lg.Gram, blocks):
        require_same(make, eager, compiled, params)
        A, B = make(eager, params).prepare(), make(compiled, params).prepare()
        V = torch.randn(A.shape[1], 3, dtype=torch.float64)
        torch.testing.assert_close(B.matmat(V), A.matmat(V), rtol=0, atol=1e-12)
    assert traced(compiled) == 2


LOSSES = {
    "as torch has it": nn.CrossEntropyLoss(label_smoothing=0.1),
    "no second derivative": lg.losses.Huber(width=0.5),
    "a function": lambda z, y: (z - nn.functional.one_hot(y, 3)).pow(4).sum(-1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_hessians_whatever_says_the_losses_derivatives(name):
    model, params = small()
    x, y = data()
    targets = nn.functional.one_hot(y, 3).double() if name == "no second derivative" else y
    require_same(lg.Hessian, *pair(model, LOSSES[name], (x, targets)), params)


def test_another_point_and_batch_are_the_same_programs():
    model, params = small()
    eager, compiled = pair(model, CE, data())
    for k in range(3):
        batch, there = data(), {name: p * (1 + k) for name, p in params.items()}
        again = compiled.with_data(batch)
        for make in (lg.GGN, lg.Hessian):
            require_same(make, eager.with_data(batch), again, there)
        torch.testing.assert_close(again.gradient(there), eager.with_data(batch).gradient(there))
    assert traced(again) == 2
    assert again.programs is compiled.programs


@pytest.mark.parametrize("make", [lg.GGN, lg.Hessian])
@pytest.mark.parametrize("name", [pytest.param(n, marks=in_full) for n in ("conv", "attention")] + ["dense"])
def test_work_is_that_of_the_eager_products(name, make):
    model, x = NETWORKS[name]() if name in NETWORKS else (dense(nn.Tanh()), torch.randn(6, 4))
    params = dict(model.named_parameters())
    eager, compiled = pair(model, CE, (x, torch.randint(3, model(x).shape[:-1])))
    A, B = make(eager, params).prepare(), make(compiled, params).prepare()
    v = torch.randn(A.shape[1])
    assert 0 < flops(lambda: B.matvec(v)) <= flops(lambda: A.matvec(v))
    again, anew = compiled.with_data(compiled.batches[0]), eager.with_data(eager.batches[0])
    assert 0 < flops(lambda: make(again, params).prepare()) <= flops(lambda: make(anew, params).prepare())


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_batches_in_memory_weights_masks_and_l2():
    model, params = small()
    batches = [(*data(n), torch.rand(n) > 0.3) for n in (6, 6, 4)]
    eager, compiled = pair(model, CE, batches, l2=0.1)
    for make in (lg.GGN, blocks):
        require_same(make, eager, compiled, params)
    assert traced(compiled) == 2  # two shapes


def test_streams():
    model, params = small()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data(8)), batch_size=3)
    eager, compiled = pair(model, CE, loader)
    require_same(lg.GGN, eager, compiled, params)
    assert traced(compiled) == 2


def test_more_shapes_than_programs_are_eager(monkeypatch):
    monkeypatch.setattr("linop_gn_torch.compiled.MOST", 2)
    model, params = small()
    eager, compiled = pair(model, CE, data())
    for n in (1, 2):
        lg.GGN(compiled.with_data(data(n)), params).prepare()
    batch = data(5)
    with pytest.warns(UserWarning, match="2 Gauss-Newton programs.*drop_last"):
        lg.GGN(compiled.with_data(batch), params).prepare()
    require_same(lg.GGN, eager.with_data(batch), compiled.with_data(batch), params)  # told once
    assert traced(compiled) == 2


def test_residuals_scalar_functions_and_trees():
    x = torch.randn(5, 3, dtype=torch.float64)
    w = torch.randn(3, dtype=torch.float64)

    def residuals(p, x):
        return (x @ p["w"]).sin() - p["b"]

    params = {"b": torch.tensor(0.3, dtype=torch.float64), "w": w}
    eager, compiled = (lg.Objective.from_residuals(residuals, x, compile=c) for c in (False, True))
    for make in (lg.GGN, lg.Hessian, lg.Jacobian):
        require_same(make, eager, compiled, params)
    eager, compiled = (lg.Objective.from_function(lambda p: (p**4).sum() / 4, compile=c) for c in (False, True))
    require_same(lg.Hessian, eager, compiled, w)
    assert "compiled" in repr(compiled)


def test_losses_that_hold_arrays_and_losses_of_ones_own():
    model, params = small()
    x, y = data()
    weighted = lg.losses.CrossEntropy(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), label_smoothing=0.1)
    own = lg.losses.FromFunction(lambda z, y: (z - y[:, None]).cosh().sum(-1), convex=True)
    for loss, targets, make in ((weighted, y, lg.Hessian), (own, y.double(), lg.GGN)):
        eager, compiled = pair(model, loss, (x, targets))
        require_same(make, eager, compiled, params)


def test_layouts_of_data_do_not_matter():
    model, params = small()
    x, y = data()
    eager, compiled = pair(model, CE, (x, y))
    lg.GGN(compiled, params).prepare()
    strided = torch.randn(4, 12, dtype=torch.float64).T[::2]
    spread = {name: torch.stack([p, p], -1)[..., 0] for name, p in params.items()}
    require_same(lg.GGN, eager.with_data((strided, y)), compiled.with_data((strided, y)), spread)
    v = torch.randn(2 * lg.GGN(eager, params).shape[0], dtype=torch.float64)[::2]
    torch.testing.assert_close(lg.GGN(compiled, params) @ v, lg.GGN(eager, params) @ v)
    assert traced(compiled) == 1


def test_inputs_that_are_the_targets_too():
    x = torch.randn(4, 3, dtype=torch.float64)
    eager, compiled = pair(lambda w, x: torch.tanh(x @ w), SE, (x, x))
    require_same(lg.Hessian, eager, compiled, torch.eye(3, dtype=torch.float64))


# what a model is


def test_an_operator_is_what_the_module_was():
    model, params = double(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    batch = data()
    eager, compiled = pair(model, CE, batch)
    G, want = lg.GGN(compiled, params), lg.GGN(eager, params).to_dense()
    model.eval()
    torch.testing.assert_close(G.to_dense(), want)
    require_same(lg.GGN, eager, compiled, params)  # in the other mode
    model[1].running_mean += 1
    require_same(lg.GGN, eager, compiled, params)
    model[0].weight.requires_grad_(False)
    some = {name: p for name, p in params.items() if name != "0.weight"}
    require_same(lg.GGN, eager, compiled, some)
    assert traced(compiled) == 4


def test_what_a_function_closes_over_is_as_it_is_now():
    scale, inner = 1.0, nn.Linear(4, 4).double()
    drop = nn.Dropout(1.0).eval()

    def model(w, x):
        return drop(inner(x)) @ w * scale

    w, (x, y) = torch.randn(4, 3, dtype=torch.float64), data()
    eager, compiled = pair(model, CE, (x, y))
    require_same(lg.GGN, eager, compiled, w)
    with torch.no_grad():
        inner.weight.mul_(2)  # the same tensor: the same program
    for objective in (eager, compiled):
        objective.gradient(torch.zeros_like(w))
    require_same(lg.GGN, eager, compiled, w)
    assert traced(compiled) == 1
    scale = 3.0
    for objective in (eager, compiled):
        objective.gradient(torch.zeros_like(w))
    require_same(lg.GGN, eager, compiled, w)
    assert traced(compiled) == 2


def test_copies_and_pickles_compile_anew():
    model, params = double(nn.Linear(4, 3))
    eager, compiled = pair(model, CE, data())
    G = lg.GGN(compiled, params).prepare()
    for made in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert made.programs is not compiled.programs
        require_same(lg.GGN, eager, made, params)
        assert traced(made) == 1
    again = copy.deepcopy(lg.GGN(compiled, params))
    v = G.domain.random(0)
    torch.testing.assert_close(again @ v, G @ v)


# what has no program


@pytest.mark.parametrize(("reason", "model"), [
    ("depends on the values|cannot trace", lambda w, x: x @ w if (x @ w).sum() > 0 else (x @ w).sin()),
    ("depends on the values|cannot trace", lambda w, x: x @ w * x.sum().item()),
    ("depends on the values|cannot trace", lambda w, x: x @ w + (x @ w)[x[:, 0] > 0].sum()),
    ("cannot trace", lambda w, x: x @ w * torch.tensor(np.asarray(x.detach()).sum())),
    ("saves tensors through hooks", lambda w, x: checkpoint(lambda w, x: (x @ w).sin(), w, x, use_reentrant=False)),
])  # fmt: skip
def test_a_model_that_cannot_be_traced_is_eager(reason, model):
    w, (x, y) = torch.randn(4, 3, dtype=torch.float64), data()
    eager, compiled = pair(model, CE, (x, y))
    with pytest.warns(UserWarning, match=f"compile=True: .*({reason}).* products are eager"):
        lg.GGN(compiled, w).prepare()
    for sign in (1, -1):
        require_same(lg.GGN, eager.with_data((sign * x, y)), compiled.with_data((sign * x, y)), w)


def test_a_model_that_draws_is_eager():
    model, params = double(dense(nn.Dropout(0.5)))
    eager, compiled = pair(model, CE, data())
    with pytest.warns(UserWarning, match="compile=True: the model draws random numbers"):
        lg.GGN(compiled, params).prepare()
    require_same(lg.GGN, eager, compiled, params)
    model.eval()
    require_same(lg.GGN, eager, compiled, params)
    assert traced(compiled) == 2


def test_a_model_that_writes_to_what_it_holds_is_eager():
    calls = torch.zeros((), dtype=torch.float64)

    def model(w, x):
        calls.add_(1)
        return x @ w

    w, batch = torch.randn(4, 3, dtype=torch.float64), data()
    eager, compiled = pair(model, CE, batch)
    with pytest.warns(UserWarning, match="writes to its inputs"):
        lg.GGN(compiled, w).prepare()
    require_same(lg.GGN, eager, compiled, w)


def test_a_program_that_is_wrong_is_not_used(monkeypatch):
    make = programs._compiled
    monkeypatch.setattr(
        programs, "_compiled", lambda m, x, often=False: _off(make(m, x, often)) if often else make(m, x)
    )
    model, params = small()
    eager, compiled = pair(model, CE, data())
    with pytest.warns(UserWarning, match="program is wrong: its J v and the eager one differ by 1.0e-03 of their size"):
        lg.GGN(compiled, params).prepare()
    with pytest.warns(UserWarning, match="gradient and H v"):
        lg.Hessian(compiled, params).prepare()
    require_same(lg.GGN, eager, compiled, params)
    require_same(lg.Hessian, eager, compiled, params)


def _off(run):
    return lambda *given: [1.001 * t for t in run(*given)]


def test_without_a_compiler_a_sentence(monkeypatch):
    monkeypatch.setattr(programs, "COMPILER", "inductor")
    monkeypatch.setattr(programs.shutil, "which", lambda name: None)
    model, params = small()
    eager, compiled = pair(model, CE, data())
    with pytest.warns(UserWarning, match="there is no C.. compiler"):
        lg.GGN(compiled, params).prepare()
    require_same(lg.GGN, eager, compiled, params)


def test_data_that_are_written_into_are_told():
    w, (x, y) = torch.randn(4, 3, dtype=torch.float64), data()
    compiled = lg.Objective(lambda w, x: torch.tanh(x @ w), CE, (x, y), compile=True)
    G = lg.GGN(compiled, w).prepare()
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        G @ G.domain.random(0)


def test_nan_at_a_point_is_told_by_the_eager_product():
    def model(w, x):
        return (x @ w).abs().sqrt() * 0 + (w * w).sum().sqrt()

    w, batch = torch.randn(4, 3, dtype=torch.float64), data()
    compiled = lg.Objective(model, CE, batch, compile=True)
    lg.GGN(compiled, w).prepare()
    with pytest.warns(RuntimeWarning, match="NaN"):
        lg.GGN(compiled, torch.zeros_like(w)).prepare().matvec(torch.ones(12, dtype=torch.float64))


def test_bad_data_are_refused_before_a_program_runs():
    model, params = small()
    x, y = data()
    for make in (lg.GGN, lg.Hessian):
        compiled = lg.Objective(model, CE, (x, y), compile=True)
        make(compiled, params).prepare()
        with pytest.raises(ValueError, match="class indices must lie in"):
            make(compiled.with_data((x, y + 7)), params).prepare()


def test_solutions_are_differentiated_as_without():
    x, y = data()
    w = torch.randn(4, 3, dtype=torch.float64)
    b = torch.randn(12, dtype=torch.float64)

    def slope(asked):
        p, rhs = w.clone().requires_grad_(), b.clone().requires_grad_()
        G = lg.GGN(lg.Objective(lambda w, x: torch.tanh(x @ w), CE, (x, y), compile=asked), 1 * p)
        step = lg.solve(lg.Damped(G, 0.1), rhs, lg.CG(rtol=1e-12))
        return torch.autograd.grad(step.x.sin().sum(), [p, rhs])

    for got, want in zip(slope(True), slope(False), strict=True):
        torch.testing.assert_close(got, want)


def test_products_under_autocast_are_eager():
    model = dense(nn.Tanh())
    params = dict(model.named_parameters())
    eager, compiled = pair(model, CE, data(dtype=torch.float32))
    G = lg.GGN(compiled, params).prepare()
    v = G.domain.random(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = lg.GGN(eager.with_data(data(dtype=torch.float32)), params) @ v
        assert (lg.GGN(compiled.with_data(data(dtype=torch.float32)), params) @ v).shape == want.shape
    assert traced(compiled) == 1


def test_a_step_of_levenberg_marquardt_is_the_same():
    model, params = small()
    eager, compiled = pair(model, CE, data(20))
    found = [lg.minimize(o, params, lg.LevenbergMarquardt(curvature=lg.GGN), max_steps=3) for o in (eager, compiled)]
    torch.testing.assert_close(found[1].params, found[0].params)
    assert traced(compiled) == 1


@in_full
def test_validation_holds():
    model, params = small()
    compiled = lg.Objective(model, CE, [data(), data()], compile=True)
    for make in (lg.GGN, lg.Hessian):
        assert lg.validate(make(compiled, params)).passed
    assert traced(compiled) == 2


# inductor

needs_compiler = pytest.mark.skipif(not programs.can_compile(), reason="inductor needs a C++ compiler")


@needs_compiler
@pytest.mark.parametrize("name", ["one leaf", *(pytest.param(n, marks=in_full) for n in NETWORKS if n != "one leaf")])
def test_inductor(name, monkeypatch):
    monkeypatch.setattr(programs, "COMPILER", "inductor")
    model, x = NETWORKS[name]()
    params = {k: p.detach() + 0.1 for k, p in model.named_parameters()}
    z = torch.func.functional_call(copy.deepcopy(model), params, (x,))
    eager, compiled = pair(model, CE, (x, torch.randint(z.shape[-1], z.shape[:-1])))
    for make in (lg.GGN, lg.Hessian) if FULL else (lg.GGN,):
        require_same(make, eager, compiled, params, 1e-4)
    assert traced(compiled) == (2 if FULL else 1)


HELD = {"scale": 1.0, "list": [1.0], "array": np.ones(1), "act": torch.tanh}


class Reads:
    """A model that finds a number in an attribute, and others in globals, from a function inside of it."""

    scale = 1.0

    def __call__(self, w, x):
        def inner(h):
            return HELD["act"](h) * HELD["scale"] * HELD["list"][0] * float(HELD["array"][0]) * self.scale

        return inner(x @ w)


def test_what_a_model_finds_elsewhere_is_as_it_is_now(monkeypatch):
    w, batch, model = torch.randn(4, 3, dtype=torch.float64), data(), Reads()
    eager, compiled = pair(model, CE, batch)
    changes = [
        lambda: None,
        lambda: HELD["list"].__setitem__(0, 2.0),
        lambda: HELD["array"].__setitem__(0, 3.0),
        lambda: monkeypatch.setitem(HELD, "act", lambda h: torch.sin(h)),
        lambda: setattr(model, "scale", 0.5),
    ]
    monkeypatch.setattr("linop_gn_torch.compiled.MOST", len(changes))
    for k, change in enumerate(changes):
        change()
        require_same(lg.GGN, eager, compiled, w + k)
        assert traced(compiled) == k + 1


def test_what_a_program_returns_may_be_written_over(monkeypatch):
    """J v of many outputs becomes H J v; where it is v itself, or has one entry for several, it is copied first."""
    monkeypatch.setattr(programs, "MANY", 1)
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    for model in (lambda p, x: p.reshape(4, 5).T, lambda p, x: x @ p.reshape(4, 5)[:, :4], lambda p, x: p[:4] + 0 * x):
        fits = [lg.Objective(model, SE, (x, y), compile=one) for one in (True, False)]
        p, v = torch.randn(20), torch.randn(20)
        kept = v.clone()
        got, want = (lg.GGN(fit, p) @ v for fit in fits)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(v, kept, rtol=0, atol=0)
        A = lg.GGN(fits[0], p).prepare()
        assert A.pieces[0].linearization.fresh
        torch.testing.assert_close(A @ v, want)


@pytest.mark.parametrize("shape", [(6, 4), (3, 2, 4)])
def test_large_products_are_added_in_one_operation(shape, monkeypatch):
    monkeypatch.setattr(added, "MANY", 1)
    net, x, y = dense(nn.Tanh()).double(), torch.randn(shape, dtype=torch.float64), torch.randint(3, shape[:-1])
    params = dict(net.named_parameters())
    fits = [lg.Objective(net, CE, (x, y), compile=one) for one in (True, False)]
    for kind in (lg.GGN, lg.Hessian):
        A, B = (kind(fit, params) for fit in fits)
        v = B.domain.random(0)
        torch.testing.assert_close(A @ v, B @ v)
        torch.testing.assert_close(A @ torch.stack([v, -v], 1), B @ torch.stack([v, -v], 1))
        (piece,) = A.prepare().pieces
        halves = piece.linearization._program.traced.halves
        assert "linop_gn.added" in " ".join(str(node.target) for half in halves for node in half.module.graph.nodes)


APART = {
    "dtypes": (lambda p, x: x.float() @ p["a"].float() + x @ p["b"], 3),
    "rows": (lambda p, x: x @ p["a"] + (torch.cat([x, -x]) @ p["b"]).view(2, 6, 3), 3),
    "a repeated row": (lambda p, x: x @ p["a"] + x[:1] @ p["b"], 3),
    "a repeated column": (lambda p, x: x @ p["a"] + x @ p["b"], 1),
}


@pytest.mark.parametrize("name", APART)
def test_products_that_do_not_lie_alike_are_added_as_they_are(name, monkeypatch):
    """They are no reason to refuse a program."""
    monkeypatch.setattr(added, "MANY", 1)
    model, columns = APART[name]
    params = {"a": torch.randn(4, 3, dtype=torch.float64), "b": torch.randn(4, columns, dtype=torch.float64)}
    x = torch.randn(6, 4, dtype=torch.float64)
    eager, compiled = pair(model, SE, (x, torch.zeros_like(model(params, x))))
    require_same(lg.GGN, eager, compiled, params, 1e-6)
    assert traced(compiled) == 1


def test_memory_over_a_large_vocabulary(monkeypatch):
    """The logits and J v, which becomes H J v, as in eager products: it was one more, and twelve to compare results.

    Of a Hessian there are probabilities and u as well: it was seven, and ten.
    """
    for module in (added, programs, parts):
        monkeypatch.setattr(module, "MANY", 1)
    monkeypatch.setattr(parts, "FEW", 1 << 12)
    monkeypatch.setattr(compiled, "_FEW", 1 << 12)
    x, y, size = torch.randn(64, 4), torch.randint(4096, (64,)), 4 * 64 * 4096
    params = {"A": torch.randn(4, 4), "W": torch.randn(4096, 4)}
    fit = lg.Objective(lambda p, x: torch.tanh(x @ p["A"]) @ p["W"].T, CE, (x, y), compile=True)
    peak, kept, G = allocations(lambda: lg.GGN(fit, params).prepare())
    assert peak < 5.2 * size
    assert kept < 1.3 * size
    assert kept + allocations(lambda: G @ params)[0] < 2.7 * size
    peak, kept, A = allocations(lambda: lg.Hessian(fit, params).prepare())
    assert peak < 5.8 * size
    assert kept < 2.4 * size  # p and u
    assert kept + allocations(lambda: A @ params)[0] < 4.6 * size
