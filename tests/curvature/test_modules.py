"""Objectives of ``nn.Module``s: parameters as the module has them, buffers and dropout, inputs of every kind."""

import copy
import gc
import threading
import weakref

import numpy as np
import pytest
from systems import FULL

import linop_gn as lg

from .networks import close


@pytest.fixture
def nn(torch):
    torch.manual_seed(0)
    return torch.nn


def data(torch, *shape, classes=3):
    return torch.randn(*shape, dtype=torch.float64), torch.randint(0, classes, shape[:1])


def oracle(torch, module, call, targets, params=None, seed=None):
    """Dense gradient and GGN of mean cross-entropy: J row by row with plain autograd on the module itself."""
    params = [p for p in module.parameters() if p.requires_grad] if params is None else params
    buffers = [b.clone() for b in module.buffers()]
    if seed is not None:
        torch.manual_seed(seed)
    z = call(module)
    N, C = z.reshape(-1, z.shape[-1]).shape
    rows = []
    for entry in z.reshape(-1):
        row = torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.reshape(-1) for part in row]))
    with torch.no_grad():
        for buffer, old in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(old)
        J, p = torch.stack(rows), torch.softmax(z.reshape(N, C), -1)
        H = torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p]) / N
        slope = (p - torch.nn.functional.one_hot(targets.reshape(-1), C)) / N
        return (J.T @ slope.reshape(-1)).numpy(), (J.T @ H @ J).numpy()


def check(torch, module, inputs, targets, call, params=None, seed=None):
    want_gradient, want = oracle(torch, module, call, targets, seed=seed)
    made = lg.Objective(module, lg.losses.CrossEntropy(), (inputs, targets))
    at = module if params is None else params
    for given in (at, dict(module.named_parameters())) if params is None else (params,):
        G, gradient = lg.GGN(made, given), made.gradient(given)
        flat = torch.cat([g.reshape(-1) for g in gradient.values()])
        close(G.to_dense().numpy(), want, 1e-12)
        close(flat.numpy(), want_gradient, 1e-12)
        assert not flat.requires_grad
    return made, G, gradient


def test_the_module_itself_is_the_parameters(torch, nn):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = data(torch, 5, 3)
    made, G, gradient = check(torch, module, x, y, lambda m: m(x))
    names = dict(module.named_parameters())
    assert gradient.keys() == names.keys()
    product = G @ gradient
    assert {name: leaf.shape for name, leaf in product.items()} == {name: leaf.shape for name, leaf in names.items()}
    assert [block.name for block in lg.BlockGGN(made, module).blocks] == ["0", "2"]
    torch.nn.functional.cross_entropy(module(x), y).backward()
    for name, parameter in names.items():
        close(gradient[name].numpy(), parameter.grad.numpy(), 1e-12)
    # A vector may be the module as well, and one of its gradients.
    assert (lg.Damped(G, 1.0) @ module).keys() == names.keys()
    assert all(not leaf.requires_grad for leaf in (lg.Damped(G, 1.0) @ module).values())
    step = lg.solve(lg.Damped(G, 1.0), {name: p.grad for name, p in names.items()}, lg.CG(rtol=1e-10))
    assert step.status is lg.Status.CONVERGED
    assert not step.x["0.weight"].requires_grad


def test_an_optimiser_steps_in_place_and_operators_stay(torch, nn):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = data(torch, 5, 3)
    made = lg.Objective(module, lg.losses.CrossEntropy(), (x, y))
    operators = [kind(made, module) for kind in (lg.GGN, lg.Hessian, lg.BlockGGN)]
    fresh = [kind(made, module) for kind in (lg.GGN, lg.Hessian, lg.BlockGGN)]
    v = operators[0].domain.random(0)
    before = [A @ v for A in operators]
    value, gradient = made.value(module), made.gradient(module)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    torch.nn.functional.cross_entropy(module(x), y).backward()
    optimiser.step()
    for A, B, Av in zip(operators, fresh, before, strict=True):
        close((A @ v).numpy(), Av.numpy(), 0.0)
        close((B @ v).numpy(), Av.numpy(), 1e-13)
    assert float(made.value(module)) < float(value)
    assert not torch.equal(made.gradient(module)["0.weight"], gradient["0.weight"])


def test_tied_and_frozen_parameters(torch, nn):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.inner = nn.Linear(4, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight
            self.inner.bias.requires_grad_(False)

        def forward(self, tokens):
            return self.head(torch.tanh(self.inner(self.embedding(tokens))))

    module = Tied().double()
    tokens, y = torch.randint(0, 5, (3, 2)), torch.randint(0, 5, (3, 2))
    want_gradient, want = oracle(torch, module, lambda m: m(tokens), y)
    made = lg.Objective(module, lg.losses.CrossEntropy(), (tokens, y))
    G = lg.GGN(made, module)
    assert G.domain.names == ("embedding.weight", "inner.weight")
    close(G.to_dense().numpy(), want, 1e-12)
    close(torch.cat([g.reshape(-1) for g in made.gradient(module).values()]).numpy(), want_gradient, 1e-12)
    # Some of the parameters: the curvature of the others is left out.
    some = {"inner.weight": module.inner.weight}
    close(lg.GGN(made, some).to_dense().numpy(), want[20:, 20:], 1e-12)
    with pytest.raises(ValueError, match=r"has no parameters \['inner\.wait'\]; it has"):
        made.value({"inner.wait": module.inner.weight})


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_in_both_modes(torch, nn, training):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = data(torch, 6, 3)
    module(x + 1)  # statistics that are not those of x
    module.train(training)
    statistics = [b.clone() for b in module.buffers()]
    made, _, _ = check(torch, module, x, y, lambda m: m(x))
    H = lg.Hessian(made, module)
    v = H.domain.random(0)
    h = 1e-5
    moved = [made.gradient(H.domain.unpack(H.domain.pack(module) + s * h * v)) for s in (1, -1)]
    difference = torch.cat([(a - b).reshape(-1) / (2 * h) for a, b in zip(*(g.values() for g in moved), strict=True)])
    close((H @ v).numpy(), difference.detach().numpy(), 1e-7)
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), statistics, strict=True))
    assert module.training is training


def normalised(nn):
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()


CHANGES = {
    "mode": lambda m: m.eval(),
    "mode of a part": lambda m: m[1].eval(),
    "a buffer in place": lambda m: m[1].running_mean.add_(5.0),
    "a buffer by its data": lambda m: m[1].running_var.data.mul_(4.0),
    "another buffer": lambda m: m[1].register_buffer("running_mean", m[1].running_mean + 1.0),
    "an attribute": lambda m: setattr(m[1], "eps", 1.0),
    "a parameter that is not given": lambda m: m.requires_grad_(False)[0].weight.mul_(2.0),
    "a part": lambda m: m.__setitem__(2, type(m[0])(4, 4).double()),
    "a forward in another place": lambda m: m(torch_like(m) + 3.0),
}


def torch_like(m):
    return m[0].weight.new_zeros(5, 3)


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("training", [True, False])
def test_an_objective_sees_what_a_module_becomes_and_operators_are_what_it_was(torch, nn, what, training):
    module = normalised(nn).train(training)
    x, y = data(torch, 6, 3)
    params = {name: p for name, p in module.named_parameters() if name.startswith("3.")}
    made = lg.Objective(module, lg.losses.CrossEntropy(), (x, y))
    value, gradient = made.value(params), made.gradient(params)
    used, unused, hessian = lg.GGN(made, params), lg.GGN(made, params), lg.Hessian(made.with_data((x, y)), params)
    v = used.domain.random(0)
    was, curved = used @ v, lg.Hessian(lg.Objective(copy.deepcopy(module), made.loss, (x, y)), params) @ v
    CHANGES[what](module)
    now = copy.deepcopy(module)
    close(made.value(params).numpy(), torch.nn.functional.cross_entropy(now(x), y).detach().numpy(), 1e-13)
    fresh = lg.Objective(copy.deepcopy(module), made.loss, (x, y))
    for name, leaf in fresh.gradient(params).items():
        close(made.gradient(params)[name].numpy(), leaf.numpy(), 1e-12)
    close((lg.GGN(made, params) @ v).numpy(), (lg.GGN(fresh, params) @ v).numpy(), 1e-12)
    for A, Av in ((used, was), (unused, was), (hessian, curved)):
        close((A @ v).numpy(), Av.numpy(), 1e-13)
    assert value.shape == ()
    assert gradient.keys() == params.keys()


def test_values_follow_mode_and_buffers(torch):
    """1.3533 where torch says 1.1890, then 1.3533 where 7.5417 was right: the numbers of another draw."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)).train()
    x, y = torch.randn(9, 4), torch.randint(3, (9,))
    params, made = dict(module.named_parameters()), lg.Objective(module, lg.losses.CrossEntropy(), (x, y))
    found = []
    for change in (lambda: None, module.eval, lambda: module[1].running_mean.add_(5.0), module.train):
        change()
        right = torch.nn.functional.cross_entropy(copy.deepcopy(module)(x), y)
        found.append(float(right.detach()))
        close(made.value(params).numpy(), right.detach().numpy(), 1e-6)
    assert len(set(found)) == 3


def test_what_is_left_alone_is_linearised_once(torch, nn):
    module = normalised(nn)
    x, y = data(torch, 6, 3)
    made = lg.Objective(module, lg.losses.CrossEntropy(), (x, y))
    point = made.at(module)
    module.eval()
    assert made.at(module) is not point
    other = made.at(module)
    assert made.at(dict(module.named_parameters())) is other
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    made.gradient(module)
    torch.nn.functional.cross_entropy(module(x), y).backward()
    optimiser.step()
    assert made.at(module).objective is other.objective  # data are looked at once, whatever the parameters become


def test_a_loop_over_batches_copies_a_module_once_and_for_no_longer_than_it_lasts(torch, nn, monkeypatch):
    from linop_gn_torch.modules import AdaptedModule

    made, make = [], AdaptedModule.__init__
    monkeypatch.setattr(AdaptedModule, "__init__", lambda *args: made.append(make(*args)))
    module = normalised(nn)
    first = lg.Objective(module, lg.losses.CrossEntropy(), data(torch, 6, 3))
    for _ in range(3):  # nothing of a step outlives it
        first.with_data(data(torch, 6, 3)).gradient(module)
    assert len(made) == 1
    module.eval()
    (x, y), batch = data(torch, 6, 3), data(torch, 6, 3)
    close(first.with_data((x, y)).value(module).numpy(), torch.nn.functional.cross_entropy(module(x), y).item(), 1e-12)
    first.with_data(batch).gradient(module)
    assert len(made) == 2
    gone = weakref.ref(module)
    del first, module
    gc.collect()
    assert gone() is None


def test_eight_threads(torch, nn):
    """Products, gradients and values of one module, and plain inference with it: 800 calls; 2000 in full."""
    module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = data(torch, 5, 3)
    made = lg.Objective(module, lg.losses.CrossEntropy(), (x, y))
    operators = lg.GGN(made, module), lg.Hessian(made, module), lg.BlockGGN(made.with_data((x, y)), module)
    v = operators[0].domain.random(0)
    params = dict(module.named_parameters())
    moved = [{name: p.detach() + s for name, p in params.items()} for s in (0.1, 0.2)]
    asks = [lambda A=A: A @ v for A in operators]
    asks += [lambda p=p: made.value(p) for p in moved]
    asks += [lambda p=p: lg.GGN(made.with_data((x, y)), p) @ v for p in moved]
    with torch.no_grad():
        right = [ask() for ask in asks]
        evaluated = copy.deepcopy(module).eval()
        served = nn.Sequential(*module[:1], evaluated[1], *module[3:])  # shares layers with the module
        asks, right = [*asks, lambda: served(x)], [*right, served(x)]
    state = torch.get_rng_state()
    before = [(name, id(p), p.detach().clone()) for name, p in module.state_dict(keep_vars=True).items()]
    wrong = []

    def work(k):
        try:
            for i in range(250 if FULL else 100):
                which = (k + i) % len(asks)
                with torch.no_grad():
                    if not torch.allclose(asks[which](), right[which], rtol=1e-10, atol=1e-12):
                        wrong.append(which)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.equal(torch.get_rng_state(), state)
    after = module.state_dict(keep_vars=True)
    assert [name for name, *_ in before] == list(after)
    for name, identity, value in before:
        assert id(after[name]) == identity
        assert torch.equal(after[name].detach(), value)


def test_dropout_is_one_fixed_draw(torch, nn):
    module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = data(torch, 6, 3)
    state = torch.get_rng_state()
    made = lg.Objective(module, lg.losses.CrossEntropy(), (x, y))
    G = lg.GGN(made, module)
    v = G.domain.random(0)
    first, gradient = G @ v, made.gradient(module)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    again = made.with_data((x, y))
    close((lg.GGN(again, module) @ v).numpy(), first.numpy(), 0.0)
    close(again.gradient(module)["0.weight"].numpy(), gradient["0.weight"].numpy(), 0.0)
    want_gradient, want = oracle(torch, module, lambda m: m(x), y, seed=0)
    close(G.to_dense().numpy(), want, 1e-12)
    close(torch.cat([g.reshape(-1) for g in gradient.values()]).numpy(), want_gradient, 1e-12)


@pytest.mark.parametrize("dropout", [False, True])
def test_one_forward_pass_serves_everything(torch, nn, dropout):
    """A module that draws is run once more, the first time ever, to find that out."""
    module = nn.Sequential(nn.Linear(3, 8), *[nn.Dropout(0.5)] * dropout, nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = data(torch, 6, 3)
    made = lg.Objective(module, lg.losses.CrossEntropy(), (x, y))
    made.value(module)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    for objective in (made, made.with_data((x + 1, y))):
        calls.clear()
        gradient, value = objective.gradient(module), objective.value(module)
        G = lg.GGN(objective, module)
        lg.solve(lg.Damped(G, 1.0), gradient, lg.CG(rtol=1e-8))
        objective.outputs(module), lg.BlockGGN(objective, module) @ gradient
        assert len(calls) == 1
        assert float(value) > 0


def test_inputs_as_tuples_and_as_keywords(torch, nn):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(2, 3)

        def forward(self, left, right, scale=1.0):
            return self.a(left) + scale * torch.tanh(self.b(right))

    module = Net().double()
    left, y = data(torch, 5, 3)
    right = torch.randn(5, 2, dtype=torch.float64)
    check(torch, module, (left, right), y, lambda m: m(left, right))
    check(torch, module, {"left": left, "right": right, "scale": 2.0}, y, lambda m: m(left, right, scale=2.0))

    class Dict(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, batch):
            return self.inner(batch["x"], batch["y"])

    check(torch, Dict(), {"x": left, "y": right}, y, lambda m: m({"x": left, "y": right}))

    class Pair(Dict):
        def forward(self, batch):
            return {"scores": super().forward(batch)}

    pair = Pair()
    with pytest.raises(TypeError, match=r"Pair returned a dict, and a model's outputs are one tensor"):
        lg.Objective(pair, lg.losses.CrossEntropy(), ({"x": left, "y": right}, y)).value(pair)


def test_data_with_gradients_leave_no_graph_behind(torch, nn):
    """Targets of a teacher and inputs of another network, with the graphs they came from."""
    module = nn.Linear(3, 3).double()
    x, _ = data(torch, 5, 3)
    x.requires_grad_()
    soft = torch.softmax(module(x * 2), -1)
    made = lg.Objective(module, lg.losses.CrossEntropy(), (x, soft))
    G = lg.GGN(made, module)
    v = G.domain.random(0)
    found = [made.value(module), made.outputs(module), G @ v, *made.gradient(module).values()]
    found += [lg.Hessian(made, module) @ v, lg.BlockGGN(made, module) @ v]
    found += [lg.LossHessian(made, module) @ torch.ones(15, dtype=torch.float64), lg.Jacobian(made, module) @ v]
    assert [tensor.requires_grad for tensor in found] == [False] * len(found)
    with torch.no_grad():
        close((lg.GGN(made.with_data((x, soft)), module) @ v).numpy(), (G @ v).numpy(), 1e-14)


def test_single_precision_modules(torch, nn):
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3))
    x, y = data(torch, 5, 3)
    G = lg.GGN(lg.Objective(module, lg.losses.CrossEntropy(), (x.float(), y)), module)
    dense = G.to_dense()
    assert dense.dtype is torch.float32
    close(dense.numpy(), oracle(torch, module.double(), lambda m: m(x), y)[1], 1e-5)
    assert np.linalg.eigvalsh(dense.double().numpy()).min() > -1e-6


def test_a_snapshot_made_in_inference_mode_can_be_differentiated_outside(torch, nn):
    module = normalised(nn).eval()
    module[3].requires_grad_(False)
    x, y = data(torch, 6, 3)
    made = lg.Objective(module, lg.losses.CrossEntropy(), (x, y))
    with torch.inference_mode():
        value = made.value(module)
    close(made.value(module).numpy(), value.numpy(), 1e-14)
    check(torch, module, x, y, lambda m: m(x), params={n: p for n, p in module.named_parameters() if p.requires_grad})


def test_what_was_asked_in_inference_mode_does_not_spoil_what_is_asked_outside(torch, nn):
    module = nn.Linear(3, 3).double()
    x, y = data(torch, 5, 3)
    made = lg.Objective(module, lg.losses.CrossEntropy(), (x, y))
    with torch.inference_mode():
        value = made.value(module)
        with pytest.raises(RuntimeError, match=r"inference_mode\(\) records no derivatives"):
            made.gradient(module)
    close(made.value(module).numpy(), value.numpy(), 1e-14)
    close(made.gradient(module)["bias"].numpy(), oracle(torch, module, lambda m: m(x), y)[0][-3:], 1e-12)
    with torch.no_grad():
        assert torch.equal(made.with_data((x, y)).gradient(module)["bias"], made.gradient(module)["bias"])


def test_containers_and_arrays_that_a_module_holds_may_be_written_into(torch):
    """What a model holds as it is made counts for operators; what it holds now for values."""

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)
            self.options, self.scales, self.array = {"times": [1.0]}, [1.0], np.ones(1)

        def forward(self, x):
            return self.linear(x) * self.options["times"][0] * self.scales[0] * float(self.array[0])

    torch.manual_seed(0)
    model, x, y = Scaled(), torch.randn(5, 3), torch.randn(5, 2)
    objective, params = lg.Objective(model, lg.losses.SquaredError(), (x, y)), dict(model.named_parameters())
    A, v = lg.GGN(objective, params), torch.ones(8)
    made = A @ v
    writes = (
        lambda: model.options.update(times=[2.0]),
        lambda: model.options["times"].__setitem__(0, 3.0),
        lambda: model.scales.__setitem__(0, 0.5),
        lambda: model.array.__setitem__(0, 2.0),
    )
    for write in writes:
        write()
        with torch.no_grad():
            told, true = float(objective.value(params)), float(0.5 * ((model(x) - y) ** 2).sum(1).mean())
        assert told == pytest.approx(true, rel=1e-6)
        assert torch.allclose(A @ v, made)
