"""Optimisers against their formulas written out in NumPy and against torch's and optax's; what a run of them costs."""

import copy

import numpy as np
import pytest
from systems import gaussian, load

import linop_gn as lg

EACH_IN_CI_ON_JAX = ("test_formulas",)

o = lg.optimisers
BACKENDS = ["numpy", "torch", "poison", "jax"]
OTHERS = ["torch", "optax"]
SHAPES = {"a": (3, 2), "b": (4,), "c": (2, 2)}


def tree(ops, seed):
    return {name: ops.asarray(gaussian([seed, i], *shape), "float64") for i, (name, shape) in enumerate(SHAPES.items())}


def trajectory(ops, optimiser, rate=0.1, steps=4):
    """The parameters after each of some steps with given gradients."""
    space = lg.Space.of(tree(ops, 0))
    x = space.pack(tree(ops, 0))
    kept, seen = optimiser.init(ops, space, x), []
    for i in range(steps):
        g = space.pack(tree(ops, i + 1))
        d, kept = optimiser.update(ops, space, g, kept, x, rate)
        x = ops.axpy(1.0, d, ops.copy(x))
        seen.append(ops.to_numpy(ops.copy(x)))
    return seen


def by_hand(rule, rate=0.1, steps=4):
    """The same with ``rule(g, x, t, memory) -> d``, x <- x - rate d."""
    ops = lg.load("numpy")
    space = lg.Space.of(tree(ops, 0))
    x, memory, seen = space.pack(tree(ops, 0)), {}, []
    for t in range(1, steps + 1):
        x = x - rate * rule(space.pack(tree(ops, t)), x, t, memory)
        seen.append(x)
    return seen


def adam(g, x, t, memory, b1=0.8, b2=0.95, eps=1e-3, decay=0.3):
    m = memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    v = memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g * g
    return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * x


def sgd(g, x, t, memory, momentum=0.9, nesterov=False, decay=0.0):
    g = g + decay * x
    b = memory["b"] = momentum * memory.get("b", 0) + g
    return g + momentum * b if nesterov else b


def clipped(g, x, t, memory):
    """By matrices and others: a, c and b; each no longer than 1, the matrices with momentum."""
    a, b, c = g[:6], g[6:10], g[10:]
    length = np.sqrt(a @ a + c @ c)
    matrices = np.concatenate([a, c]) * min(1, 1 / length)
    m = memory["m"] = 0.5 * memory.get("m", 0) + matrices
    return np.concatenate([m[:6], b * min(1, 1 / np.sqrt(b @ b)), m[6:]])


CLIPPED = o.Groups("matrices", {"matrices": o.Clip(o.SGD(0.5)), "others": o.Clip(o.SGD())})
RULES = {
    "Adam": (o.Adam(0.8, 0.95, 1e-3, 0.3), adam),
    "Adam, undecayed": (o.Adam(0.8, 0.95, 1e-3), lambda *a: adam(*a, decay=0.0)),
    "SGD": (o.SGD(), lambda *a: sgd(*a, momentum=0.0)),
    "momentum": (o.SGD(0.9, weight_decay=0.2), lambda *a: sgd(*a, decay=0.2)),
    "Nesterov": (o.SGD(0.9, True), lambda *a: sgd(*a, nesterov=True)),
    "leaf by leaf": (o.Groups("leaf", o.Adam(0.8, 0.95, 1e-3, 0.3)), adam),
    "groups": (CLIPPED, clipped),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_formulas(name, backend):
    optimiser, rule = RULES[name]
    np.testing.assert_allclose(trajectory(load(backend), optimiser), by_hand(rule), rtol=1e-12)


def peers(name):
    """Ours and theirs, by name."""
    if name == "torch":
        torch = pytest.importorskip("torch")
        from linop_gn_torch.optimisers import TorchOptimiser as Theirs

        return load("torch"), {
            "AdamW": (o.Adam(weight_decay=0.01), Theirs(torch.optim.AdamW)),
            "SGD": (o.SGD(0.9, True, 0.1), Theirs(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1)),
        }
    optax = pytest.importorskip("optax")
    from linop_gn_jax.optimisers import Optax

    return load("jax"), {
        "AdamW": (o.Adam(weight_decay=0.01), Optax(optax.adamw(1.0, weight_decay=0.01))),
        "SGD": (
            o.Clip(o.SGD(0.9, True)),
            Optax(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0, 0.9, True))),
        ),
    }


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("rule", ["AdamW", "SGD"])
def test_ours_step_as_theirs(name, rule):
    ops, found = peers(name)
    ours, theirs = (trajectory(ops, optimiser, steps=6) for optimiser in found[rule])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_theirs_move_arrays_of_their_own(name):
    for theirs in (pair[1] for pair in peers(name)[1].values()):
        with pytest.raises(TypeError, match="these parameters are numpy's"):
            trajectory(lg.load("numpy"), theirs, steps=1)


def test_an_optimiser_with_a_closure_is_refused():
    torch = pytest.importorskip("torch")
    from linop_gn_torch.optimisers import TorchOptimiser

    with pytest.raises(TypeError, match="LBFGS evaluates a closure"):
        TorchOptimiser(torch.optim.LBFGS)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_kept_is_not_written_over(name):
    ops, found = peers(name)
    for optimiser in (pair[1] for pair in found.values()):
        space = lg.Space.of(tree(ops, 0))
        x, g = space.pack(tree(ops, 0)), space.pack(tree(ops, 1))
        _, kept = optimiser.update(ops, space, g, optimiser.init(ops, space, x), x, 0.1)
        twice = [ops.to_numpy(optimiser.update(ops, space, g, kept, x, 0.1)[0]) for _ in range(2)]
        np.testing.assert_array_equal(*twice)


def test_torchs_own_loop():
    """A run on batches is torch's training loop, to rounding, Muon's matrices included."""
    torch = pytest.importorskip("torch")
    from linop_gn_torch.optimisers import TorchOptimiser

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    theirs = copy.deepcopy(module)
    batches = [(torch.randn(8, 3).double(), torch.randn(8, 1).double()) for _ in range(6)]
    optimiser = o.Groups(
        "matrices",
        {
            "matrices": TorchOptimiser(torch.optim.Muon, weight_decay=0.0),
            "others": TorchOptimiser(torch.optim.AdamW, weight_decay=0.1),
        },
    )
    method = lg.FirstOrder(optimiser, 0.02)
    objective = lg.Objective(module, lg.losses.SquaredError(), batches[0])
    run = lg.minimize(objective, module, method, batches=batches)
    two = [p for p in theirs.parameters() if p.ndim == 2], [p for p in theirs.parameters() if p.ndim != 2]
    steppers = torch.optim.Muon(two[0], 0.02, weight_decay=0.0), torch.optim.AdamW(two[1], 0.02, weight_decay=0.1)
    values = []
    for x, y in batches:
        loss = 0.5 * ((theirs(x) - y) ** 2).sum(1).mean()
        theirs.zero_grad()
        loss.backward()
        for stepper in steppers:
            stepper.step()
        values.append(float(loss.detach()))
    assert run.status is lg.Status.COMPLETED
    np.testing.assert_allclose(run.history["value"][1:], values, rtol=1e-10)
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(run.params[name], p.detach(), rtol=1e-5, atol=1e-6)  # Muon multiplies in bfloat16


@pytest.mark.parametrize("backend", ["numpy", "torch", "optax"])
def test_a_file_holds_all(backend, tmp_path):
    """A run that is broken off and resumed from its file ends in the same bits; JAX's in one program."""
    ops = load("jax" if backend == "optax" else backend)
    optimiser = o.Adam() if backend == "numpy" else peers(backend)[1]["AdamW"][1]
    batches = [
        (ops.asarray(gaussian(i, 5, 3), "float64"), ops.asarray(gaussian([i], 5, 1), "float64")) for i in range(6)
    ]
    jacobian = None if ops.calculus is not None else (lambda p, x: x[:, None, :])
    fit = lg.Objective(lambda p, x: (x @ p)[:, None], lg.losses.SquaredError(), batches[0], jacobian=jacobian)
    start = ops.asarray(gaussian(0, 3), "float64")
    method = lg.FirstOrder(optimiser, 0.1, lg.controls.Cosine(steps=6), average=0.5)
    whole = lg.minimize(fit, start, method, batches=batches)
    for limit in (2, 5, None):
        part = lg.minimize(fit, start, method, batches=batches, max_steps=limit, checkpoint=tmp_path / "run", every=1)
    np.testing.assert_array_equal(ops.to_numpy(part.params), ops.to_numpy(whole.params))
    np.testing.assert_array_equal(*(ops.to_numpy(lg.averaged(run.state)) for run in (part, whole)))
    state = lg.start(method, fit, start)
    for batch in batches:
        state = lg.advance(method, fit.with_data(batch), state)
    np.testing.assert_array_equal(ops.to_numpy(state.params), ops.to_numpy(whole.params))


def test_a_step_takes_one_gradient():
    """On the same data and on a stream; a value comes with each, and none is asked for beside it."""
    calls = {"model": 0, "jacobian": 0}

    def model(p, x):
        calls["model"] += 1
        return x @ p

    def jacobian(p, x):
        calls["jacobian"] += 1
        return x

    batches = [(gaussian(i, 5, 3), gaussian([i], 5)) for i in range(6)]
    fit = lg.Objective(model, lg.losses.Huber(), batches[0], jacobian=jacobian)
    lg.minimize(fit, np.zeros(3), lg.FirstOrder(), max_steps=5)
    assert calls == {"model": 6, "jacobian": 6}
    lg.minimize(fit, np.zeros(3), lg.FirstOrder(), batches=batches)
    assert calls == {"model": 12, "jacobian": 12}


def test_schedules():
    ops, C = lg.load("numpy"), lg.controls
    cosine = C.Cosine(last=0.1, steps=4)
    expected = [0.1 + 0.9 * (1 + np.cos(np.pi * min(k, 4) / 4)) / 2 for k in range(6)]
    np.testing.assert_allclose([cosine.at(ops, k, 1.0) for k in range(6)], expected)
    bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    rule = C.WarmUp(2, begin=0.2, then=C.Linear(steps=2))
    run = lg.minimize(bowl, np.zeros(2), lg.FirstOrder(o.SGD(), 0.4, rule), max_steps=5)
    np.testing.assert_allclose(run.history["rate"][1:], [0.2, 0.3, 0.4, 0.2, 0.0], atol=1e-15)


def test_the_average_is_beside_the_run():
    bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    plain, kept = (
        lg.minimize(bowl, np.zeros(2), lg.FirstOrder(o.SGD(), 0.5, average=a), max_steps=3) for a in (None, 0.8)
    )
    np.testing.assert_array_equal(plain.params, kept.params)
    xs = 3 * (1 - 0.5 ** np.arange(1, 4))
    weights = 0.8 ** np.arange(2, -1, -1)
    np.testing.assert_allclose(lg.averaged(kept.state), np.full(2, weights @ xs / weights.sum()))
    np.testing.assert_array_equal(lg.averaged(lg.start(lg.FirstOrder(average=0.9), bowl, np.ones(2))), np.ones(2))
    with pytest.raises(ValueError, match="keeps no average"):
        lg.averaged(plain.state)


def test_what_is_no_optimiser_is_refused():
    for make, match in (
        (lambda: lg.FirstOrder(0.1), "needs an optimiser such as"),
        (lambda: lg.FirstOrder(o.Adam), "call it first"),
        (lambda: lg.FirstOrder(schedule=0.1), "A number is the rate itself"),
        (lambda: lg.FirstOrder(rate=-1.0), "rate must be"),
        (lambda: o.SGD(nesterov=True), "give momentum"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            make()
    ops = lg.load("numpy")
    for groups, optimisers, match in (
        ({"x": "nothing*", "y": "*"}, o.SGD(), "no leaf is left for"),
        ({"x": "a"}, o.SGD(), "in no block"),
        ("leaf", {"a": o.SGD()}, "no optimiser for the group 'b'"),
    ):
        with pytest.raises(ValueError, match=match):
            trajectory(ops, o.Groups(groups, optimisers))


def test_a_step_beyond_numbers_is_not_taken():
    """On a stream too, whose last step nothing comes after."""
    fit = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), (np.eye(2), np.ones(2)), jacobian=lambda p, x: x)
    run = lg.minimize(
        fit, np.zeros(2), lg.FirstOrder(o.SGD(), 1e308, average=0.5), batches=[(1e10 * np.eye(2), np.ones(2))]
    )
    assert run.status is lg.Status.NONFINITE
    np.testing.assert_array_equal(run.params, np.zeros(2))


def test_what_an_optimiser_of_torchs_kind_counts_for_a_group_goes_on():
    """A rate that falls with a count in ``param_groups``, and a list of tensors that is written to, as some have."""
    torch = pytest.importorskip("torch")
    from linop_gn_torch.optimisers import TorchOptimiser

    class Falling(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self):
            group = self.param_groups[0]
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                (total,) = self.state[p].setdefault("totals", [torch.zeros_like(p)])
                total.add_(p.grad)
                p.sub_(group["lr"] / group["step"] * total)

    ops, rule = load("torch"), TorchOptimiser(Falling)
    x, g = torch.zeros(2), torch.ones(2)
    space, seen = lg.Space.of(x), []
    kept = rule.init(ops, space, x)
    for _ in range(3):
        step, kept = rule.update(ops, space, g, kept, x, 1.0)
        seen.append(step.tolist())
    assert seen == [[-1.0, -1.0]] * 3  # i gradients over i
