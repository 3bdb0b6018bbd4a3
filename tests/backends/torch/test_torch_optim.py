"""Methods as ``torch.optim.Optimizer``: the steps of ``lg``, and the habits of people who use torch's optimisers."""

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from linop_gn_torch import optim
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint

import linop_gn as lg

MSE = nn.MSELoss()


def net(seed=1, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)


def loader(size=16, dtype=torch.float32):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=draws, dtype=dtype)
    y = torch.sin(x.sum(1, keepdim=True))
    return [(x[i : i + size], y[i : i + size]) for i in range(0, 64, size)]


BATCHES = loader()


def trained(opt, batches):
    return [opt.step(batch).item() for batch in batches]


def params(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(these, those):
    return these.keys() == those.keys() and all(torch.equal(these[n], those[n]) for n in these)


KFAC = lg.preconditioners.KFAC
PAIRS = {
    "LevenbergMarquardt": (lambda m: optim.LevenbergMarquardt(m, MSE, damping=0.1), lg.LevenbergMarquardt(damping=0.1)),
    "SGN": (lambda m: optim.SGN(m, MSE), lg.SGN()),
    "HessianFree": (lambda m: optim.HessianFree(m, MSE, max_steps=9), lg.HessianFree(max_steps=9)),
    "TrustRegion": (lambda m: optim.TrustRegion(m, MSE), lg.TrustRegion()),
    "NewtonCG": (lambda m: optim.NewtonCG(m, MSE, max_steps=9), lg.NewtonCG(max_steps=9)),
    "GaussNewton": (
        lambda m: optim.GaussNewton(m, MSE, damping=0.1, solver=lg.CG(max_steps=5, preconditioner=KFAC())),
        lg.GaussNewton(0.1, lg.CG(max_steps=5, preconditioner=KFAC())),
    ),
    "KFAC": (
        lambda m: optim.KFAC(m, MSE, damping=0.1, decay=0.9),
        lg.GaussNewton(0.1, lg.CG(rtol=1e-3, max_steps=10, preconditioner=KFAC(decay=0.9)), curvature=lg.KFAC),
    ),
    "any method": (
        lambda m: optim.Optimizer(m, lg.FirstOrder(lg.optimisers.Adam(), 0.01), MSE),
        lg.FirstOrder(lg.optimisers.Adam(), 0.01),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_steps_are_those_of_a_hand_loop_bit_for_bit_and_resume_so(name):
    make, method = PAIRS[name]
    model, by_hand = net(), net()
    opt, batches = make(model), [*BATCHES, BATCHES[0]]
    fit = lg.Objective(by_hand, MSE, batches[0])
    begun = trained(opt, batches[:2])
    file, weights = io.BytesIO(), copy.deepcopy(model.state_dict())
    torch.save(opt.state_dict(), file)
    losses = trained(opt, batches[2:])
    assert same(lg.minimize(fit, params(by_hand), method, batches=batches).params, params(model))
    if name != "KFAC":  # which would average the factors of the first batch twice here
        state = lg.start(method, fit, params(by_hand))
        for batch in batches:
            state = lg.advance(method, fit.with_data(batch), state, fresh=True)
        assert same(state.params, params(model))
    assert losses[-1] < begun[0]  # of the same batch

    other = net(seed=5)
    again = make(other)
    other.load_state_dict(weights)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    again.load_state_dict(kept)
    assert torch.equal(again.state_dict()["run"], kept["run"])  # before it has stepped
    assert trained(again, batches[2:]) == losses
    assert same(params(other), params(model))
    assert int(again.last.steps) == again.steps == 5


def test_a_loop_as_people_write_it_ends_below_sgd_of_any_rate():
    """Over three starts together: noise of batches decides single ones."""
    batches = [(x.double(), y.double()) for x, y in BATCHES]

    def ends(model, step, epochs=10):
        for _ in range(epochs):
            for batch in batches:
                step(batch)
        return sum(MSE(model(x), y).item() for x, y in batches)

    def by_sgd(seed, rate):
        model = net(seed, torch.float64)
        sgd = torch.optim.SGD(model.parameters(), rate, momentum=0.9)

        def step(batch):
            sgd.zero_grad()
            MSE(model(batch[0]), batch[1]).backward()
            sgd.step()

        return ends(model, step)

    best = ours = 0.0
    for seed in (1, 2, 3):
        best += min(by_sgd(seed, rate) for rate in (0.01, 0.03, 0.1, 0.3, 1.0))
        model = net(seed, torch.float64)
        opt = optim.LevenbergMarquardt(model, MSE)
        ours += ends(model, lambda batch, opt=opt: (opt.zero_grad(), opt.step(batch)))
    assert ours < 0.5 * best
    assert isinstance(opt.last, lg.Result)
    assert "LevenbergMarquardt" in str(opt.last)
    assert float(opt.last.value) <= float(opt.step(batches[-1]))  # the loss of the same batch, before the step


@pytest.mark.parametrize(
    "schedule",
    [
        lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.5**epoch),
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4),
        lambda opt: lr_scheduler.OneCycleLR(opt, 0.7, total_steps=5, cycle_momentum=False),
    ],
)
def test_schedulers_shorten_steps(schedule, recwarn):
    model = net()
    opt = optim.LevenbergMarquardt(model, MSE)
    scheduler, twin = schedule(opt), net()
    for batch in BATCHES[:3]:
        lr, before = opt.param_groups[0]["lr"], params(model)
        twin.load_state_dict(model.state_dict())
        whole = copy.deepcopy(opt)
        whole.param_groups[0]["lr"] = 1.0
        opt.step(batch)
        whole.step(batch)
        ends = params(whole.model)
        for name, p in params(model).items():
            torch.testing.assert_close(p, before[name] + lr * (ends[name] - before[name]))
        scheduler.step()
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def test_groups_have_their_own_rate_and_decay():
    model, method = net(), lg.LevenbergMarquardt(damping=0.1)
    opt = optim.LevenbergMarquardt(
        model,
        MSE,
        [{"params": model[0].parameters(), "lr": 0.0, "weight_decay": 0.5}, {"params": list(model[2].parameters())}],
        damping=0.1,
        weight_decay=0.1,
    )
    first = params(model)
    l2 = {name: 0.5 if name[0] == "0" else 0.1 for name in first}
    fit = lg.Objective(net(), MSE, BATCHES[0], l2=l2)
    loss = opt.step(BATCHES[0])
    assert float(loss) == float(fit.value(first))
    ends = lg.minimize(fit, first, method, batches=BATCHES[:1]).params
    for name, p in params(model).items():
        assert torch.equal(p, first[name] if name[0] == "0" else ends[name])


def test_what_is_frozen_or_in_no_group_stays_and_patterns_choose():
    model = net()
    first = params(model)
    model[0].bias.requires_grad_(False)
    opt = optim.LevenbergMarquardt(model, MSE, [*model[0].parameters(), model[2].weight])
    trained(opt, BATCHES[:2])
    model[0].weight.requires_grad_(False)
    middle = params(model)
    trained(opt, BATCHES[:2])
    assert {n for n, p in params(model).items() if not torch.equal(p, first[n])} == {"0.weight", "2.weight"}
    assert {n for n, p in params(model).items() if not torch.equal(p, middle[n])} == {"2.weight"}
    assert [p.grad for p in model.parameters()] == [None] * 4
    assert optim.SGN(net(), MSE, "2.*").param_groups[0]["param_names"] == ["2.weight", "2.bias"]
    with pytest.raises(ValueError, match=r"a name like 'lora'; the model has 0\.weight"):
        optim.SGN(net(), MSE, "lora")
    with pytest.raises(ValueError, match="none of the model's"):
        optim.SGN(model, MSE, net().parameters())
    with pytest.raises(TypeError, match=r"SGN takes the module itself, got a list.* Write SGN\(model, loss\)"):
        optim.SGN(list(model.parameters()), MSE)
    opt.add_param_group({"params": [model[2].bias], "lr": 0.5})
    trained(opt, BATCHES[:2])
    assert not torch.equal(model[2].bias, middle["2.bias"])
    model[2].weight = nn.Parameter(torch.zeros(1, 8))
    with pytest.raises(ValueError, match="no longer the model's"):
        opt.step(BATCHES[0])


def test_what_the_user_does_to_parameters_between_steps_is_seen():
    model = net()
    opt = optim.LevenbergMarquardt(model, MSE, damping=0.1)
    opt.step(BATCHES[0])
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # nothing to clip
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    before, fit = params(model), lg.Objective(net(), MSE, BATCHES[1])
    loss = opt.step(BATCHES[1])
    assert float(loss) == float(fit.value(before))
    method = lg.LevenbergMarquardt(damping=float(opt.last.history["damping"][0]))
    begun = lg.minimize(fit, before, method, batches=[BATCHES[1]])
    assert same(begun.params, params(model))


def test_copies_and_pickles_go_on_alone():
    model = net()
    opt = optim.LevenbergMarquardt(model, MSE, damping=0.1)
    trained(opt, BATCHES[:2])
    copied = copy.deepcopy(opt)
    unpickled = pickle.loads(pickle.dumps(opt))
    losses = trained(opt, BATCHES)
    for other in (copied, unpickled):
        assert other.model is not model
        assert trained(other, BATCHES) == losses
        assert same(params(other.model), params(model))


def test_refusals_say_what_to_do():
    opt = optim.LevenbergMarquardt(net(), MSE)
    with pytest.raises(TypeError, match=r"step takes a batch, step\(\(x, y\)\)"):
        opt.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with pytest.raises(TypeError, match="takes no GradScaler"):
        scaler.step(opt, BATCHES[0])
    with pytest.raises(ValueError, match="of another kind of optimiser"):
        opt.load_state_dict(torch.optim.SGD(net().parameters()).state_dict())
    opt.step(BATCHES[0])
    other = optim.LevenbergMarquardt(net(), MSE, accept=0.1)
    other.load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match=r"state in state_dict\(\) .*threshold was 0.0001, is 0.1"):
        other.step(BATCHES[0])
    with pytest.raises(TypeError, match=r"method must be an lg\.Method"):
        optim.Optimizer(net(), lg.CG(), MSE)
    with pytest.raises(TypeError, match="needs a loss"):
        optim.TrustRegion(net()).step(BATCHES[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model, batches = net(dtype=dtype), 2 * loader(dtype=dtype)
    losses = trained(optim.LevenbergMarquardt(model, MSE), batches)
    assert losses[-4] < 0.7 * losses[0]
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_module_in_another_dtype_begins_anew():
    model = net()
    opt = optim.LevenbergMarquardt(model, MSE)
    trained(opt, BATCHES[:2])
    model.double()
    trained(opt, loader(dtype=torch.float64)[:2])
    assert int(opt.last.steps) == 2


def test_a_module_on_another_device_goes_on_there():
    """Seen from a state that says it was elsewhere."""
    model, twin = net(), net()
    opt, other = optim.LevenbergMarquardt(model, MSE), optim.LevenbergMarquardt(twin, MSE)
    trained(opt, BATCHES[:2])
    trained(other, BATCHES[:2])
    opt._state = replace(opt._state, space=replace(opt._state.space, device="cuda:0"))
    assert trained(opt, BATCHES) == trained(other, BATCHES)
    assert int(opt.last.steps) == 6


def test_nothing_of_a_step_is_held_until_the_next():
    """No graph, and of frozen parameters one snapshot, which the next step finds again."""
    model = net()
    model[0].weight.requires_grad_(False)
    opt = optim.LevenbergMarquardt(model, MSE)
    opt.step(BATCHES[0])
    assert opt.last.state.own.operator is None
    held = opt._adapted
    opt.step(BATCHES[1])
    assert opt._adapted is held


@pytest.mark.parametrize(("begun", "status"), [(0, "NONFINITE_INPUT"), (2, "NONFINITE")])
def test_a_batch_whose_loss_is_not_finite_moves_nothing(begun, status):
    model, twin = net(), net()
    opt, other = optim.LevenbergMarquardt(model, MSE), optim.LevenbergMarquardt(twin, MSE)
    trained(opt, BATCHES[:begun])
    trained(other, BATCHES[:begun])
    before, (x, y) = params(model), BATCHES[0]
    assert opt.step((x, 1e30 * y)) == float("inf")
    assert opt.last.status.name == status
    with pytest.raises(ValueError, match="targets must be finite"):
        opt.step((x, y / 0.0))
    assert same(before, params(model))
    assert trained(opt, BATCHES) == trained(other, BATCHES)


def test_running_statistics_follow_one_forward_a_step():
    def normed():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))

    model, twin = normed(), normed()
    opt = optim.LevenbergMarquardt(model, MSE)
    for batch in BATCHES:
        twin.load_state_dict(model.state_dict())
        opt.step(batch)
        twin(batch[0])
        assert all(torch.equal(b, c) for b, c in zip(model.buffers(), twin.buffers(), strict=True))
    model.eval()
    before = [b.clone() for b in model.buffers()]
    losses = trained(opt, 3 * BATCHES)
    assert losses[-1] < losses[0]
    assert all(torch.equal(b, c) for b, c in zip(model.buffers(), before, strict=True))
    model.train()
    closed = optim.TrustRegion(model)
    twin.load_state_dict(model.state_dict())
    closed.step(lambda: MSE(model(BATCHES[0][0]), BATCHES[0][1]))
    twin(BATCHES[0][0])
    assert all(torch.equal(b, c) for b, c in zip(model.buffers(), twin.buffers(), strict=True))


def test_dropout_draws_anew_at_each_step_and_as_before_after_a_resume():
    def dropping():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 1))

    model = dropping()
    opt = optim.LevenbergMarquardt(model, MSE, lr=0.0)
    losses = trained(opt, 4 * BATCHES[:1])
    assert len(set(losses)) == 4
    again = optim.LevenbergMarquardt(dropping(), MSE, lr=0.0)
    assert trained(again, 2 * BATCHES[:1]) == losses[:2]
    third = optim.LevenbergMarquardt(dropping(), MSE, lr=0.0)
    third.load_state_dict(again.state_dict())
    assert trained(third, 2 * BATCHES[:1]) == losses[2:]
    assert trained(optim.LevenbergMarquardt(dropping(), MSE, seed=9), BATCHES[:1])[0] != losses[0]
    state = torch.get_rng_state()
    opt.step(BATCHES[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_statistics_beside_dropout_leave_the_generators_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    opt, state = optim.LevenbergMarquardt(model, MSE), torch.get_rng_state()
    opt.step(BATCHES[0])
    assert model[1].num_batches_tracked == 1
    assert torch.equal(torch.get_rng_state(), state)


def closures(model, batch):
    return lambda: MSE(model(batch[0]), batch[1])


@pytest.mark.parametrize("make", [optim.TrustRegion, optim.NewtonCG])
def test_a_closure_is_the_same_step_as_its_batch(make):
    model, twin = net(dtype=torch.float64), net(dtype=torch.float64)
    opt, on_batches = make(model, weight_decay=1e-3), make(twin, MSE, weight_decay=1e-3)
    for batch in loader(dtype=torch.float64):
        held = [*model.parameters()]
        a, b = opt.step(closures(model, batch)), on_batches.step(batch)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
        assert all(p is q for p, q in zip(held, model.parameters(), strict=True))
    for name, p in params(model).items():
        torch.testing.assert_close(p, params(twin)[name], rtol=1e-9, atol=1e-12)


def test_closures_of_recurrent_and_tied_modules_with_dropout():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer, self.cell = nn.Linear(3, 3), nn.Linear(3, 3), nn.LSTM(3, 3)
            self.outer.weight = self.inner.weight

        def forward(self, x):
            return self.outer(torch.dropout(torch.tanh(self.cell(self.inner(x))[0]), 0.5, self.training))

    model = Tied()
    opt, x = optim.TrustRegion(model), torch.randn(5, 3)
    for _ in range(6):
        opt.step(closure=lambda: model(x).square().mean())
        assert model.outer.weight is model.inner.weight
        assert model.cell._flat_weights[0] is model.cell.weight_ih_l0
    assert float(opt.last.value) < 0.2


def test_closures_that_cannot_be_taken():
    model, batch = net(), BATCHES[0]
    opt = optim.TrustRegion(model)

    def backward():
        loss = MSE(model(batch[0]), batch[1])
        loss.backward()
        return loss

    def recomputed():
        return MSE(checkpoint(model, batch[0], use_reentrant=False), batch[1])

    before = params(model)
    with pytest.raises(RuntimeError, match=r"calls no backward\(\)"):
        opt.step(backward)
    with pytest.raises(NotImplementedError, match="checkpointing"):
        opt.step(recomputed)
    with pytest.raises(TypeError, match="returned a float"):
        opt.step(lambda: 1.0)
    other = net()
    with pytest.raises(ValueError, match="depends on no parameter"):
        opt.step(lambda: MSE(other(batch[0]), batch[1]))
    with pytest.raises(ValueError, match="depends on no parameter"):
        opt.step(lambda: torch.ones(()))
    with pytest.raises(ValueError, match="which a closure does not tell"):
        optim.LevenbergMarquardt(model, MSE).step(closures(model, batch))
    assert same(before, params(model))
    assert [p.grad for p in model.parameters()] == [None] * 4


def test_batches_that_were_collected_and_data_for_the_curvature():
    model, twin = net(), net()
    opt, at_once = optim.LevenbergMarquardt(model, MSE), optim.LevenbergMarquardt(twin, MSE)
    for batch in BATCHES:
        opt.collect(batch)
    loss = opt.step()
    assert loss == at_once.step(BATCHES)
    assert same(params(model), params(twin))
    torch.testing.assert_close(float(loss), sum(MSE(net()(x), y).item() for x, y in BATCHES) / 4)
    with pytest.raises(TypeError, match="step takes a batch"):
        opt.step()
    opt.step(lg.StepData(BATCHES[0], curvature=BATCHES[1]))
    opt.step([*BATCHES[0]])  # as a DataLoader gives it


def test_wrapped_modules(tmp_path):
    plain = net()
    compiled, inside = torch.compile(net()), net()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(inside)
        opts = [optim.LevenbergMarquardt(m, MSE, damping=0.1) for m in (plain, compiled, wrapped)]
        losses = [trained(opt, BATCHES) for opt in opts]
        with pytest.raises(TypeError, match="step on a batch"):
            optim.TrustRegion(wrapped).step(closures(wrapped, BATCHES[0]))
    finally:
        dist.destroy_process_group()
    assert losses[0] == losses[1] == losses[2]
    assert same(params(plain), params(inside))


def test_results_are_loaded_into_modules_of_any_wrapping():
    model, fit = net(), lg.Objective(net(), MSE, BATCHES[0])
    run = lg.minimize(fit, model, max_steps=2)
    for other in (net(5), torch.compile(net(5))):
        assert run.load_into(other) is other
        assert all(torch.equal(p, q) for p, q in zip(other.parameters(), run.params.values(), strict=True))
    in_order = lg.minimize(lg.Objective(net(), MSE, BATCHES[0]), list(net().parameters()), max_steps=2)
    assert same(params(in_order.load_into(net(5))), run.params)
    double = in_order.load_into(net(5).double())
    assert double[0].weight.dtype == torch.float64
    with pytest.raises(ValueError, match=r"other shapes: 0\.weight"):
        run.load_into(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)))
    with pytest.raises(TypeError, match=r"go on with result\.params"):
        run.load_into({})


@pytest.mark.parametrize("given", [{"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -1e-3}])
def test_rates_that_are_none_are_refused_as_by_torch(given):
    net = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=f"{next(iter(given))} must be finite and not negative"):
        optim.LevenbergMarquardt(net, nn.MSELoss(), **given)
    with pytest.raises(ValueError, match="must be finite"):
        optim.LevenbergMarquardt(net, nn.MSELoss(), [{"params": [net.weight], **given}])


def test_a_group_has_no_options_of_the_method_and_keeps_those_of_strangers():
    net = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="damping of a group"):
        optim.LevenbergMarquardt(net, nn.MSELoss(), [{"params": [net.weight], "damping": 3.0}])
    opt = optim.LevenbergMarquardt(net, nn.MSELoss(), [{"params": [net.weight], "lr": 0.5, "tag": "mine"}])
    assert opt.param_groups[0]["tag"] == "mine"
