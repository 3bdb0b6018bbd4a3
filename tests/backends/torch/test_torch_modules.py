"""nn.Modules as plain functions: which parameters, which inputs, what is left untouched."""

from __future__ import annotations

import copy
import functools
import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from linop_gn_torch import backend
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import linop_gn as lg

adapt = backend.calculus.adapt


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def doubled(module: nn.Module) -> dict[str, Tensor]:
    return {name: 2 * p.detach() for name, p in module.named_parameters()}


def twice(module: nn.Module) -> nn.Module:
    """A copy whose parameters are doubled: what ``adapt(module)(doubled(module), x)`` has to compute."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for p in module.parameters():
            p *= 2
    return module


def nested(module: nn.Module) -> dict[str, dict[str, Tensor]]:
    return {str(i): doubled(part) for i, part in enumerate(module) if doubled(part)}


@pytest.mark.parametrize("form", [doubled, nested, lambda m: list(doubled(m).values()), lambda m: twice(m)])
def test_forms_of_parameters(form):
    model, x = small(), torch.randn(5, 3)
    assert torch.equal(adapt(model)(form(model), x), twice(model)(x))


def test_trainable_parameters_in_the_order_of_parameters_to_vector():
    model = small()
    model[0].bias.requires_grad_(False)
    params = backend.normalize(model)
    assert list(params) == ["0.weight", "2.weight", "2.bias"]
    names, leaves, _ = backend.flatten(params)
    assert names == list(params)
    vector = torch.nn.utils.parameters_to_vector([p for p in model.parameters() if p.requires_grad])
    assert torch.equal(backend.pack(leaves, "float32"), vector)


def test_parameters_left_out_are_the_modules_own_and_constant():
    model, x = small(), torch.randn(5, 3)
    outputs = adapt(model)({"2.bias": torch.tensor([1.0, 2.0])}, x)
    assert torch.allclose(outputs, model(x) - model[2].bias + torch.tensor([1.0, 2.0]))
    assert not outputs.requires_grad


def test_a_list_may_hold_only_the_trainable_parameters():
    model, x = small(), torch.randn(5, 3)
    model[0].requires_grad_(False)
    weight, bias = torch.randn(2, 4), torch.randn(2)
    assert torch.allclose(adapt(model)([weight, bias], x), torch.tanh(model[0](x)) @ weight.T + bias)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(3, 3, bias=False)
        self.decode = nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)))


@pytest.mark.parametrize("name", ["encode.weight", "decode.weight"])
def test_tied_weights_are_one_parameter_under_any_of_their_names(name):
    model, x, w = Tied(), torch.randn(5, 3), torch.randn(3, 3)
    assert list(backend.normalize(model)) == ["encode.weight"]
    assert torch.allclose(adapt(model)({name: w}, x), torch.tanh(x @ w.T) @ w.T)


def test_two_values_for_tied_weights_are_refused():
    with pytest.raises(ValueError, match=r"'encode.weight' and 'decode.weight' are one tied tensor"):
        adapt(Tied())({"encode.weight": torch.zeros(3, 3), "decode.weight": torch.zeros(3, 3)}, torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"0.wieght": torch.zeros(4, 3)}, r"Sequential has no parameters \['0.wieght'\]; it has \['0.weight'"),
        ({"0.weight": torch.zeros(3, 4)}, r"'0.weight' has shape \(3, 4\); the module's has \(4, 3\)"),
        ([torch.zeros(4, 3)], "1 parameters in a list, but Sequential has 4"),
    ],
)
def test_wrong_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        adapt(small())(params, torch.zeros(1, 3))


def test_a_state_dict_is_told_from_parameters():
    model = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match=r"\['running_mean', 'running_var', 'num_batches_tracked'\] are buffers"):
        adapt(model)(model.state_dict(), torch.zeros(2, 3))


def test_modules_without_anything_to_vary():
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        backend.normalize(nn.Linear(2, 2).requires_grad_(False))
    lazy = nn.LazyLinear(2)
    with pytest.raises(ValueError, match="'weight' has no shape yet"):
        backend.normalize(lazy)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, *, shift: Tensor | float = 0.0) -> Tensor:
        return self.scale * x + shift


class OneDict(Keywords):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.scale * batch["x"] + batch["shift"]


class AnyKeyword(Keywords):
    def forward(self, **batch: Tensor) -> Tensor:
        return self.scale * batch["x"] + batch["shift"]


class OneList(Keywords):
    def forward(self, batch: list[Tensor]) -> Tensor:
        return self.scale * batch[0] + batch[1]


class TwoPositional(Keywords):
    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.scale * x + shift


@pytest.mark.parametrize("kind", [Keywords, OneDict, AnyKeyword, OneList, TwoPositional])
def test_inputs(kind):
    x, shift = torch.randn(3), torch.randn(3)
    inputs = [x, shift] if kind is OneList else (x, shift) if kind is TwoPositional else {"x": x, "shift": shift}
    assert torch.equal(adapt(kind())({"scale": torch.tensor(3.0)}, inputs), 3 * x + shift)


def state(module: nn.Module) -> dict[str, object]:
    held = {f"{name}.{k}": v for name, m in module.named_modules() for k, v in vars(m).items()}
    held |= module.state_dict(keep_vars=True)
    return {k: (id(v), v.detach().clone()) for k, v in held.items() if isinstance(v, Tensor)}


def classic(layer: nn.Module, norm: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm(layer)


MODELS = {
    "batch_norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)),
    "instance_norm": lambda: nn.Sequential(nn.Linear(3, 3), nn.InstanceNorm1d(6, track_running_stats=True)),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
    "classic_spectral": lambda: classic(nn.Linear(3, 3), nn.utils.spectral_norm),
    "classic_weight": lambda: classic(nn.Linear(3, 3), nn.utils.weight_norm),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_module_and_the_generator_are_left_as_they_were(name):
    model, x = MODELS[name](), torch.randn(6, 3)
    before, generator = state(model), torch.get_rng_state()
    names, leaves, _ = backend.flatten(backend.normalize(model))
    calculus = backend.calculus

    def function(p):
        return adapt(model)(dict(zip(names, p, strict=True)), x)

    at = calculus.linearize(function, leaves, torch.ones_like)
    at.vjp(at.jvp([torch.ones_like(p) for p in leaves]))
    calculus.linearize_gradient(lambda p: function(p).sum(), leaves).hvp([torch.ones_like(p) for p in leaves])
    assert torch.equal(calculus.evaluate(function, leaves), at.outputs)
    after = state(model)
    assert before.keys() == after.keys()
    for key, (identity, value) in before.items():
        assert after[key][0] == identity, key
        assert torch.equal(after[key][1], value), key
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_batch_norm_normalises_as_the_modules_mode_says():
    model, x = nn.BatchNorm1d(3), 5 + torch.randn(8, 3)
    params = dict(model.named_parameters())
    assert adapt(model)(params, x).mean().abs() < 1e-5
    model.eval()
    assert adapt(model)(params, x).mean() > 4


class Padded(nn.Module):
    """Evaluated without gradients, torch's encoder takes a fused path that puts zeros at the padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(4, 1)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=torch.tensor([[False, False, True], [False, True, True]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_constant_encoder_computes_the_same_with_and_without_gradients():
    model, x = Padded().eval(), torch.randn(2, 3, 4)
    weight, calculus = torch.randn(1, 4), backend.calculus

    def function(p):
        return adapt(model)({"head.weight": p[0]}, x)

    expected = model.encode(x)  # the ordinary path, because its parameters require gradients here
    at = calculus.linearize(function, [weight], torch.ones_like)
    assert torch.allclose(at.outputs, expected @ weight.T + model.head.bias, atol=1e-5)
    assert torch.allclose(calculus.evaluate(function, [weight]), at.outputs, atol=1e-6)
    rows = calculus.jacobian_rows(function, [weight], range(6))
    assert torch.allclose(torch.stack([row[0] for row in rows]).reshape(2, 3, 4), expected, atol=1e-5)


class Noisy(nn.Module):
    """Noise by a function call, which no list of layer types would find."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 50)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(x), 0.5, self.training)


@pytest.mark.parametrize("make", [Noisy, lambda: nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5))])
def test_draws_are_fixed_by_the_seed(make):
    model, x = make(), torch.randn(2, 3)
    params = dict(model.named_parameters())
    first = adapt(model)(params, x)
    torch.rand(7)
    assert torch.equal(adapt(model)(params, x), first)
    assert torch.equal(adapt(model, seed=0)(params, x), first)
    assert not torch.equal(adapt(model, seed=1)(params, x), first)
    assert torch.equal(adapt(model, seed=1)(params, x), adapt(model, seed=1)(params, x))
    model.eval()
    assert torch.equal(adapt(model)(params, x), model(x))


def test_the_same_function_for_the_same_module_for_as_long_as_it_lives():
    model = small()
    function = adapt(model)
    assert adapt(model) is function
    assert adapt(function) is function
    assert adapt(model, seed=1) is not function
    gone = weakref.ref(model)
    del model
    assert gone() is not None
    del function
    gc.collect()
    assert gone() is None


class Roundabout(nn.Module):
    """Reaches its layers in all the ways that a shell follows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))
        self.listed, self.weights = [self.a, {"b": self.b}], (self.c.weight,)
        self.bound, self.bent = self.through, functools.partial(nn.functional.linear, weight=self.d.weight)
        self.closed = lambda x: self.c(x) + self.a.bias
        self.a.forward = self.a.forward  # as wrappers do
        self.register_forward_hook(self.hook)

    def through(self, x: Tensor) -> Tensor:
        return self.listed[1]["b"](self.listed[0](x)) @ self.weights[0]

    def hook(self, module: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
        return outputs + self.d.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.bound(x) + self.closed(x) + self.bent(x)


def test_a_shell_has_no_part_in_common_with_the_module():
    model, x = Roundabout(), torch.randn(5, 3)
    params = {name: torch.randn_like(p, requires_grad=True) for name, p in model.named_parameters()}
    p, linear = params, nn.functional.linear
    a = linear(x, p["a.weight"], p["a.bias"])
    expected = linear(a, p["b.weight"], p["b.bias"]) @ p["c.weight"]
    expected = expected + linear(x, p["c.weight"], p["c.bias"]) + p["a.bias"] + linear(x, p["d.weight"]) + p["d.bias"]
    outputs = adapt(model)(params, x)
    assert torch.allclose(outputs, expected, atol=1e-5)
    assert all(g is not None for g in torch.autograd.grad(outputs.sum(), list(params.values())))


class Behind:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return self.module.inner(x)


def test_a_parameter_reached_behind_the_back_of_a_shell_is_refused():
    model = nn.Module()
    model.inner = nn.Linear(3, 2)
    model.forward = Behind(model)
    with pytest.raises(RuntimeError, match=r"uses a parameter \(shape \(2, 3\)\) through an object or a global"):
        adapt(model)(doubled(model), torch.randn(5, 3))


def test_threads_leave_the_settings_of_the_process_as_they_were():
    model, x = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).eval(), torch.randn(2, 3, 4)
    leaves = [p.detach() for p in model.parameters()]
    v = [torch.randn_like(p) for p in leaves]

    def settings() -> tuple[bool, ...]:
        cuda = torch.backends.cuda
        return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()

    def product(_: int = 0) -> Tensor:
        return backend.calculus.linearize(lambda p: adapt(model)(p, x), leaves, torch.sin).jvp(v)

    before, right = settings(), product()
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(found, right) for found in pool.map(product, range(64)))
    assert settings() == before


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_parts_that_are_compiled_or_scripted():
    inner, x = small(), torch.randn(5, 3)
    for part in (torch.compile(inner, backend="eager"), torch.jit.script(inner)):
        model = nn.Sequential(part, nn.Tanh())
        expected = torch.tanh(twice(inner)(x))
        assert torch.allclose(adapt(model)(doubled(model), x), expected)
    inner.compile(backend="eager")
    assert torch.allclose(adapt(inner)(doubled(inner), x), twice(small_like(inner))(x))


def small_like(module: nn.Module) -> nn.Module:
    made = small()
    made.load_state_dict(module.state_dict())
    return made


class Sometimes(nn.Module):
    """Draws where its inputs say so, in ways that take a generator and in those that take none."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x + torch.rand(4) + torch.randn_like(x) + torch.randint_like(x, 3) + torch.randperm(4)
            x = x + torch.normal(x, 1.0) + torch.empty(4).exponential_() + torch.bernoulli(x.sigmoid())
        return self.scale * x


def test_draws_of_every_kind_are_fixed_even_if_the_first_call_draws_none():
    function, params = adapt(Sometimes()), {"scale": torch.ones(4)}
    assert torch.equal(function(params, -torch.ones(4)), -torch.ones(4))
    first = function(params, torch.ones(4))
    state = torch.get_rng_state()
    assert torch.equal(function(params, torch.ones(4)), first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert torch.equal(Sometimes()(torch.ones(4)), first)


def test_checkpointed_draws_are_drawn_again():
    model = nn.Sequential(nn.Linear(3, 6), Checkpointed(nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2))))
    plain, x = nn.Sequential(model[0], model[1].inner), torch.randn(4, 3)
    leaves = list(doubled(model).values())
    v = [torch.randn_like(p) for p in leaves]
    functions = adapt(model), adapt(plain)
    at = [backend.calculus.linearize(lambda p, f=f: f(p, x), leaves, torch.sin) for f in functions]
    for ours, expected in zip(*(a.vjp(a.jvp(v)) for a in at), strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore:Converting a tensor to a Python boolean")
def test_traced_modules_are_modules():
    model = nn.Sequential(small(), nn.BatchNorm1d(2))
    x, other = torch.randn(5, 3), torch.randn(7, 3)
    traced = torch.jit.trace(model, x)
    buffers = {name: b.clone() for name, b in traced.named_buffers()}
    assert torch.allclose(adapt(traced)(doubled(traced), other), twice(model)(other))
    assert torch.allclose(adapt(traced)(doubled(traced), {"input": other}), twice(model)(other))
    assert all(torch.equal(b, buffers[name]) for name, b in traced.named_buffers())
    objective = lg.Objective(traced, lg.losses.SquaredError(), (x, torch.zeros(5, 2)))
    plain = lg.Objective(model, lg.losses.SquaredError(), (x, torch.zeros(5, 2)))
    v = objective.gradient(traced)
    for operator in (lg.GGN, lg.Hessian):
        found, right = operator(objective, traced) @ v, operator(plain, model) @ v
        assert all(torch.allclose(found[name], right[name], atol=1e-5) for name in right)


def test_names_that_compiling_lengthens():
    model = torch.compile(small(), backend="eager")
    params = dict(model.named_parameters())
    assert all(name.startswith("_orig_mod.") for name in params)
    objective = lg.Objective(model, lg.losses.SquaredError(), (torch.randn(5, 3), torch.zeros(5, 2)))
    product = lg.GGN(objective, params) @ objective.gradient(params)
    assert product.keys() == params.keys()
    assert lg.minimize(objective, params, max_steps=2).params.keys() == params.keys()


def test_parameters_that_can_be_read_once_are_refused():
    model = small()
    objective = lg.Objective(model, lg.losses.SquaredError(), (torch.randn(5, 3), torch.zeros(5, 2)))
    for once in (model.parameters(), model.named_parameters()):
        with pytest.raises(TypeError, match=r"dict\(module.named_parameters\(\)\)"):
            objective.gradient(once)


def test_compiled_modules_are_used_uncompiled():
    model = small()
    compiled = torch.compile(model, backend="eager")
    assert adapt(compiled) is adapt(model)
    assert list(backend.normalize(compiled)) == list(backend.normalize(model))


def test_outputs_must_be_one_tensor():
    model = nn.LSTM(2, 2)
    with pytest.raises(TypeError, match=r"LSTM returned a tuple.*self.model\(inputs\)\[0\]"):
        adapt(model)(model, torch.zeros(1, 1, 2))
    with pytest.raises(TypeError, match="callable"):
        adapt(3)


class Blocks(nn.Module):
    """Counts the forwards of its checkpointed part."""

    forwards = 0

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

    def part(self, x: Tensor) -> Tensor:
        type(self).forwards += 1
        return torch.tanh(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.part, x, use_reentrant=False))


def test_checkpointing_recomputes_with_the_parameters_differentiated_at():
    """The module itself holds zeros: recomputed with those, the products would be others, without any error."""
    model, x = Blocks(), torch.randn(4, 3)
    params = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()

    def plain(p: dict[str, Tensor]) -> Tensor:
        hidden = torch.tanh(x @ p["body.weight"].T + p["body.bias"])
        return hidden @ p["head.weight"].T + p["head.bias"]

    names, leaves, _ = backend.flatten(params)
    v = [torch.randn_like(p) for p in leaves]
    products = []
    for function in (adapt(model), lambda p, x: plain(p)):
        at = backend.calculus.linearize(lambda p, f=function: f(dict(zip(names, p, strict=True)), x), leaves, torch.sin)
        products.append([*at.vjp(at.jvp(v)), *at.gradient])
    for ours, expected in zip(*products, strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)
    assert type(model).forwards > 2  # it was recomputed, so the test is of what it says


def test_checkpointing_after_dropout_leaves_the_generator_alone():
    model, x = nn.Sequential(nn.Dropout(0.5), Blocks()), torch.randn(4, 3)
    names, leaves, _ = backend.flatten(backend.normalize(model))
    before = torch.get_rng_state()
    backend.calculus.linearize(lambda p: adapt(model)(dict(zip(names, p, strict=True)), x), leaves, torch.sin)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("outer", ["saved on the host", "checkpointed whole"])
def test_hooks_for_saved_tensors_around_the_model(outer):
    model, x = small(), torch.randn(4, 3)
    names, leaves, _ = backend.flatten({k: p + 1 for k, p in model.named_parameters()})
    v = [torch.randn_like(p) for p in leaves]

    def function(p):
        return adapt(model)(dict(zip(names, p, strict=True)), x)

    def hooked(p):
        if outer == "checkpointed whole":
            return checkpoint(function, p, use_reentrant=False)
        with torch.autograd.graph.save_on_cpu():
            return function(p)

    plain, at = (backend.calculus.linearize(f, leaves, torch.sin) for f in (function, hooked))
    for ours, expected in zip(at.vjp(at.jvp(v)), plain.vjp(plain.jvp(v)), strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)


# several processes


@pytest.fixture
def processes():
    """A group of one process."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


def test_what_is_spread_over_processes_is_refused_with_a_way_to_go(processes):
    data = torch.ones(4, 3), torch.ones(4, 2)
    for net in (nn.parallel.DistributedDataParallel(nn.Linear(3, 2)), nn.DataParallel(nn.Linear(3, 2))):
        for model, params in ((net, dict(net.named_parameters())), (net, net), (nn.Sequential(net), net.module)):
            with pytest.raises(TypeError, match=r"is a Dist.*\.module|is a Data.*\.module"):
                lg.GGN(lg.Objective(model, lg.losses.SquaredError(), data), params)
        lg.GGN(lg.Objective(net.module, lg.losses.SquaredError(), data), net.module)
    mesh = processes.init_device_mesh("cpu", (1,))
    spread = processes.tensor.distribute_tensor(torch.ones(3), mesh, [processes.tensor.Shard(0)])
    plain = lg.Diagonal(torch.ones(3))
    for use in (
        lambda: plain @ spread,
        lambda: lg.solve(plain, spread),
        lambda: lg.GGN(lg.Objective(lambda p, x: x * p, lg.losses.SquaredError(), (spread,) * 2), torch.ones(3)),
    ):
        with pytest.raises(TypeError, match=r"is a DTensor, of which each process has a part.*full_tensor\(\)"):
            use()
    fit = lg.Objective(lambda p, x: x * p, lg.losses.SquaredError(), (torch.ones(4, 3),) * 2)
    assert (lg.GGN(fit, spread) @ spread).placements == spread.placements


class Owner:
    def __init__(self, net):
        self.net = net

    def forward(self, p, x):
        return torch.func.functional_call(self.net, p, x)

    __call__ = forward


def test_functions_that_call_what_is_spread_are_refused(processes):
    """Closures, globals, partial functions, methods and objects: where they call it, not where they reach it."""
    net, data = nn.parallel.DistributedDataParallel(nn.Linear(3, 2)), (torch.ones(4, 3), torch.ones(4, 2))
    wrapped, own = dict(net.named_parameters()), dict(net.module.named_parameters())

    def inner(p, x):
        return torch.func.functional_call(net, p, x)

    def plainly(p, x):
        return torch.func.functional_call(net.module, p, x)

    names = {"torch": torch, "net": net}
    exec("def script(p, x):\n    return torch.func.functional_call(net, p, x)", names)
    for function in (
        inner,
        lambda p, x: inner(p, x).square(),
        lambda p, x, held=net: torch.func.functional_call(held, p, x),
        functools.partial(lambda held, p, x: torch.func.functional_call(held, p, x), net),
        Owner(net).forward,
        Owner(net),
        names["script"],
        torch.func.vmap(lambda p, x: torch.func.functional_call(net, p, x[None]), in_dims=(None, 0)),
    ):
        objective = lg.Objective(function, lg.losses.SquaredError(), data)
        for ask in (objective.value, objective.gradient, lambda p, o=objective: lg.GGN(o, p).prepare()):
            with pytest.raises(TypeError, match=r"calls is a DistributedDataParallel: .*Take its \.module"):
                ask(wrapped)
    right = lg.GGN(lg.Objective(net.module, lg.losses.SquaredError(), data), own)
    v = lg.Space.of(own).random(0)
    for _ in range(2):
        torch.testing.assert_close(lg.GGN(lg.Objective(plainly, lg.losses.SquaredError(), data), own) @ v, right @ v)


def test_fully_sharded_modules_are_refused(processes):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    net = nn.Linear(3, 2)
    fsdp.fully_shard(net, mesh=processes.init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"is a FSDPLinear: it gathers its parameters.*without fully_shard"):
        lg.minimize(lg.Objective(net, lg.losses.SquaredError(), (torch.ones(4, 3), torch.ones(4, 2))), net)
