"""Inner Gauss-Newton and prox-linear against the formulas with dense Jacobians, written out in NumPy."""

import numpy as np
import pytest
from systems import gaussian, in_full, load

import linop_gn as lg

conformance = pytest.importorskip("linop_gn.testing.conformance")
o, C = lg.optimisers, lg.controls
N, SIZE, CLASSES = 3, 5, 3


def model(p, x):
    return lg.namespace(x).sin(x @ p["w"]) + p["b"]


def jacobian(p, x):
    xp = lg.namespace(x)
    eye = xp.eye(CLASSES)
    by_w = eye[None, :, None, :] * x[:, None, :, None] * xp.cos(x @ p["w"])[:, :, None, None]
    return {"b": xp.broadcast_to(eye, (x.shape[0], CLASSES, CLASSES)), "w": by_w}


def minibatches(seed, many=N, size=SIZE):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((size, 2)), rng.integers(0, CLASSES, size)) for _ in range(many)]


def start():
    return {"b": gaussian(5, CLASSES), "w": gaussian(6, 2, CLASSES)}


class Oracle:
    """On flat parameters, b first, then w."""

    blocks = (slice(0, 3), slice(3, 9))

    def at(self, x, batch):
        """z (B, C) and J (B, C, n)."""
        p = {"b": x[:3], "w": x[3:].reshape(2, CLASSES)}
        J = jacobian(p, batch[0])
        return model(p, batch[0]), np.concatenate([J["b"], J["w"].reshape(*J["w"].shape[:2], -1)], axis=2)

    def softmax(self, z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def value(self, x, batches):
        logs = [np.log(self.softmax(self.at(x, b)[0]))[np.arange(len(b[1])), b[1]] for b in batches]
        return -np.mean(np.concatenate(logs))

    def gradient(self, x, q, batch, whole, blocks):
        (z, J), v = self.at(x, batch), q - x
        found = np.zeros_like(x)
        for block in self.blocks if blocks else (slice(None),):
            Jl = J[:, :, block]
            Jv, p, hot = Jl @ v[block], self.softmax(z), np.eye(CLASSES)[batch[1]]
            u = self.softmax(z + Jv) - hot if whole else p - hot + p * Jv - p * np.sum(p * Jv, 1, keepdims=True)
            found[block] = np.einsum("bcn,bc->n", Jl, u) / len(z)
        return found

    def run(
        self, steps, rule, whole=False, blocks=False, warm=True, search=5, inner_average=None, rate=lambda t, j: 0.2
    ):
        x, memory, inner, told = np.concatenate([leaf.ravel() for leaf in start().values()]), {}, 0, []
        q = x
        for batches, accepted in steps:
            if not warm:
                q, memory = x, {}
            mean = weight = 0.0
            for j, batch in enumerate(batches):
                q = q - rate(inner, j) * rule(self.gradient(x, q, batch, whole, blocks), memory)
                inner += 1
                if inner_average is not None:
                    mean = inner_average * mean + (1 - inner_average) * q
                    weight = inner_average * weight + 1 - inner_average
            d = (q if inner_average is None else mean / weight) - x
            lengths = [2 ** (-i / 2) for i in range(search)] if search else [1.0]
            losses = [self.value(x + a * d, accepted) for a in lengths]
            x = x + lengths[int(np.argmin(losses))] * d
            told.append((x, losses))
        return told


def heavy(beta):
    def rule(g, memory):
        memory["b"] = beta * memory.get("b", 0) + g
        return memory["b"]

    return rule


def adam(g, memory):
    t = memory["t"] = memory.get("t", 0) + 1
    m = memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
    v = memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * g * g
    return m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def clipped(g, memory):
    g = np.concatenate([part * min(1, 0.1 / np.linalg.norm(part)) for part in (g[:3], g[3:])])
    return heavy(0.5)(g, memory)


def half_wave(k, steps):
    return (1 + np.cos(np.pi * min(k / steps, 1))) / 2


def both(inner, j):
    return 0.2 * half_wave(inner, 8) * half_wave(j, 4)


SCHEDULES = {"schedule": C.Cosine(steps=8), "inner_schedule": C.Cosine(steps=4)}
CLIPPED = o.Groups("leaf", o.Clip(o.SGD(0.5), 0.1))
CASES = {
    "Gauss-Newton": (lg.InnerGaussNewton(o.SGD(0.9), 0.2, **SCHEDULES), {"rule": heavy(0.9), "rate": both}),
    "prox-linear": (
        lg.ProxLinear(o.Adam(), 0.2, inner_average=0.7),
        {"rule": adam, "whole": True, "inner_average": 0.7},
    ),
    "layerwise": (lg.InnerGaussNewton(CLIPPED, 0.2, blocks="layer"), {"rule": clipped, "blocks": True}),
    "layerwise, prox-linear": (
        lg.ProxLinear(CLIPPED, 0.2, blocks="layer", search=lg.searches.Grid(count=8)),
        {"rule": clipped, "blocks": True, "whole": True, "search": 8},
    ),
    "cold, unsearched": (
        lg.InnerGaussNewton(o.Adam(), 0.2, warm=False, search=None),
        {"rule": adam, "warm": False, "search": 0},
    ),
}
COMPILED = ("Gauss-Newton", "layerwise, prox-linear")


def problem(ops, data):
    supplied = jacobian if ops.calculus is None else None
    return lg.Objective(model, lg.losses.CrossEntropy(), data, jacobian=supplied)


def on(ops, batches):
    return [(ops.asarray(x, "float64"), ops.asarray(y, "int64")) for x, y in batches]


def fresh(steps):
    """For each step minibatches, and others, twice as many, for the search."""
    return [(minibatches([1, t]), minibatches([2, t], 2 * N)) for t in range(steps)]


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("name", CASES)
def test_formulas(name, backend):
    ops, (method, options) = load(backend), CASES[name]
    if "compiled" in ops.capabilities and name not in COMPILED:
        pytest.skip("compiled for two cases")
    data = fresh(4)
    batches = [lg.StepData(on(ops, own), acceptance=on(ops, other)) for own, other in data]
    params = {key: ops.asarray(leaf, "float64") for key, leaf in start().items()}
    told = Oracle().run(data, **options)
    run = lg.minimize(problem(ops, batches[0].gradient), params, method, batches=batches)
    found = np.concatenate([ops.to_numpy(leaf).ravel() for leaf in run.params.values()])
    np.testing.assert_allclose(found, told[-1][0], rtol=1e-10)
    if method.search is not None:
        table = np.stack([run.history[f"loss_{i}"][1:] for i in range(method.search.count)], axis=1)
        np.testing.assert_allclose(table, [losses for _, losses in told], rtol=1e-10)
        np.testing.assert_allclose(run.history["value"][1:], table.min(1))
    assert run.history["inner_steps"][-1] == 4 * N
    assert run.history["products"][-1] == 4 * N * (2 if method.blocks else 1)


def test_the_closed_form():
    """For a quadratic, N steps down the same minibatch lead to x - (I - (I - rate G)^N) G^-1 g."""
    A, y, x = gaussian(0, 6, 4), gaussian(1, 6), gaussian(2, 4)
    G, g = A.T @ A, A.T @ (A @ x - y)
    fit = lg.Objective(
        lambda p, x: x @ p, lg.losses.SquaredError(reduction="sum"), [(A, y)] * 5, jacobian=lambda p, x: x
    )
    rate = 0.5 / np.linalg.norm(G, 2)
    run = lg.minimize(fit, x, lg.InnerGaussNewton(o.SGD(), rate, search=None), max_steps=1)
    shrunk = np.linalg.matrix_power(np.eye(4) - rate * G, 5)
    np.testing.assert_allclose(run.params, x - (np.eye(4) - shrunk) @ np.linalg.solve(G, g), rtol=1e-11)


def test_what_a_step_costs():
    """A forward pass and a Jacobian for each minibatch, and a pass through the data of the search for each length."""
    calls = {"model": 0, "jacobian": 0}

    def counted(name, function):
        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        return call

    fit = lg.Objective(
        counted("model", model), lg.losses.CrossEntropy(), minibatches(0), jacobian=counted("jacobian", jacobian)
    )
    state = lg.start(lg.InnerGaussNewton(), fit, start())
    assert calls == {"model": N, "jacobian": 0}
    step = fit.with_data(minibatches(1))
    state = lg.advance(lg.InnerGaussNewton(), step, state)
    assert calls == {"model": N + N + 5 * N, "jacobian": N}
    assert (state.own.inner_steps, state.own.products, state.own.evaluations) == (N, N, 6)
    calls.update(model=0, jacobian=0)
    whole = lg.InnerGaussNewton(search=None)
    lg.advance(whole, step.with_data(minibatches(2)), lg.start(whole, fit, start()))
    assert calls == {"model": N + N, "jacobian": N}


def test_ties_take_the_longer_way():
    flat = lg.Objective(
        lambda p, x: 0.0 * (x @ p), lg.losses.SquaredError(), [(np.eye(2), np.ones(2))], jacobian=lambda p, x: x
    )
    run = lg.minimize(flat, np.zeros(2), lg.InnerGaussNewton(o.SGD(), 0.1), max_steps=1)
    assert run.history["length"][-1] == 1.0
    still = lg.InnerGaussNewton(o.SGD(), 0.1, search=lg.searches.Grid(decrease=True))
    run = lg.minimize(flat, np.zeros(2), still, max_steps=1)
    assert (run.history["length"][-1], run.history["refused"][-1]) == (0.0, 1)


def test_a_run_beyond_numbers_ends_where_there_were_some():
    method = lg.InnerGaussNewton(o.SGD(), 1e200)
    run = lg.minimize(problem(lg.load("numpy"), minibatches(0)), start(), method, max_steps=5)
    assert run.status is lg.Status.NONFINITE
    for key, leaf in start().items():
        np.testing.assert_array_equal(run.params[key], leaf)


def test_losses_that_the_framework_differentiates():
    """A callable loss takes the same steps as the one in closed form."""
    ops = load("torch")
    F = pytest.importorskip("torch").nn.functional
    params = {key: ops.asarray(leaf, "float64") for key, leaf in start().items()}
    data, method = on(ops, minibatches(0)), lg.ProxLinear(o.SGD(), 0.2)
    theirs = lg.Objective(model, lambda z, y: F.cross_entropy(z, y, reduction="none"), data)
    runs = [lg.minimize(objective, params, method, max_steps=2) for objective in (problem(ops, data), theirs)]
    np.testing.assert_allclose(*(run.params["w"].numpy() for run in runs), rtol=1e-12)


def test_another_framework_differentiates():
    pytest.importorskip("torch")
    fit = problem(lg.load("numpy"), minibatches(0))
    bridged = lg.Objective(model, lg.losses.CrossEntropy(), minibatches(0), derivatives="torch")
    runs = [lg.minimize(f, start(), lg.InnerGaussNewton(blocks="leaf"), max_steps=2) for f in (fit, bridged)]
    np.testing.assert_allclose(*(run.params["w"] for run in runs), rtol=1e-12)


def test_what_does_not_fit_is_refused():
    scalar = lg.Objective.from_function(lambda p: p @ p, gradient=lambda p: 2 * p)
    with pytest.raises(ValueError, match="plain scalar function"):
        lg.minimize(scalar, np.zeros(2), lg.InnerGaussNewton())
    for parts, match in (
        ({"search": lg.searches.Armijo()}, "None takes the whole way"),
        ({"of": "cubic"}, "of must be"),
        ({"average": -1.0}, "average must be"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            lg.InnerGaussNewton(**parts)


CONFORMING = {
    "first order": lg.FirstOrder(
        o.Groups("leaf", o.Clip(o.Adam(weight_decay=1e-3))), 0.1, C.WarmUp(2, then=C.Cosine())
    ),
    "Gauss-Newton": lg.InnerGaussNewton(o.SGD(0.5), 0.3, average=0.9),
    "prox-linear": lg.ProxLinear(o.Adam(), 0.1, blocks="leaf", search=None, warm=False, inner_average=0.5),
}


IN_TURN = {"first order": "torch", "Gauss-Newton": "poison", "prox-linear": "torch"}
HELD = [
    pytest.param(name, backend, marks=() if backend in ("numpy", IN_TURN[name]) else in_full)
    for name in CONFORMING
    for backend in ("numpy", "torch", "poison", "jax")
]


@pytest.mark.parametrize(("name", "backend"), HELD)
def test_they_keep_what_methods_promise(name, backend):
    conformance.check_method(CONFORMING[name], load(backend)).raise_if_failed()
