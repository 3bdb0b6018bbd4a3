"""JAX: one program for all parameters, data and dampings, inside the user's transformations and outside."""

import gc

import numpy as np
import pytest
from systems import FULL

import linop_gn as lg
from linop_gn.curvature.term import Term

from .cases import Case, dense, host, objective, put
from .hessians import hessian
from .networks import NETWORKS, close, fill, flat, like

CASE = Case("mlp", "softmax", "mean", 8, "weights")
MODEL = NETWORKS["mlp"].model


@pytest.fixture
def backend(jax):
    return lg.load("jax")


@pytest.fixture
def data(backend):
    (batch,) = CASE.batches()
    return tuple(put(backend, part) for part in batch)


@pytest.fixture
def params(backend):
    return put(backend, CASE.params())


class Traced:
    """A model that counts how often Python runs it."""

    def __init__(self):
        self.count = 0

    def __call__(self, p, x):
        self.count += 1
        return MODEL(p, x)


def test_new_parameters_data_and_damping_run_the_same_programs(jax, backend):
    from linop_gn_jax.compiled import compilations

    model = Traced()

    def everything(seed, damping, sizes):
        case = CASE._replace(seed=seed, sizes=sizes)
        batches = [tuple(put(backend, part) for part in batch) for batch in case.batches()]
        made = everything.first.with_data(batches)
        at = put(backend, case.params())
        gradient, value = made.gradient(at), made.value(at)
        G, H, B = lg.GGN(made, at), lg.Hessian(made, at), lg.BlockGGN(made, at)
        step = lg.solve(lg.Damped(G, damping), gradient, lg.CG(rtol=1e-6))
        return value, G @ gradient, H @ gradient, B @ gradient, step.x, made.value(like_on(backend, at, 1.0))

    for sizes in ((3, 3, 2),):
        everything.first = objective(CASE, backend)
        everything.first = lg.Objective(model, CASE.make_loss(), everything.first.batches)
        everything(0, 0.1, sizes)
        traced, programs = model.count, compilations()
        assert traced > 0
        for seed in (1, 2):
            value, Gv, *_ = everything(seed, 0.1 * seed, sizes)
            want = dense(CASE._replace(seed=seed, sizes=sizes))
            close(host(backend, value), [want.value], 1e-12)
            close(host(backend, Gv), want.G @ want.gradient, 1e-12)
        assert model.count == traced
        assert compilations() == programs


def like_on(backend, tree, shift):
    return fill(tree, lambda leaf: leaf + shift)


def test_inside_a_jit_of_the_users(jax, backend, data, params):
    runs = []

    @jax.jit
    def step(params, data, damping):
        runs.append(1)
        made = lg.Objective(MODEL, lg.losses.CrossEntropy(), data)
        gradient = made.gradient(params)
        G = lg.GGN(made, params)
        solution = lg.solve(lg.Damped(G, damping), gradient, lg.CG(rtol=1e-12, max_steps=60))
        outside = lg.Hessian(made, params) @ gradient, lg.BlockGGN(made, params) @ gradient
        return made.value_and_gradient(params), G @ gradient, solution, outside

    for seed in (8, 9):
        case = CASE._replace(seed=seed)
        want, H = dense(case), hessian(case)
        batch = tuple(put(backend, part) for part in case.batches()[0])
        (value, gradient), Gg, solution, (Hg, Bg) = step(put(backend, case.params()), batch, 0.5)
        close(host(backend, value), [want.value], 1e-12)
        close(host(backend, gradient), want.gradient, 1e-12)
        close(host(backend, Gg), want.G @ want.gradient, 1e-12)
        close(host(backend, Hg), H @ want.gradient, 1e-12, float((abs(H) @ abs(want.gradient)).max()))
        x = np.linalg.solve(want.G + 0.5 * np.eye(len(want.G)), want.gradient)
        close(host(backend, solution.x), x, 1e-9)
        assert solution.status is lg.Status.CONVERGED
        owner = np.repeat([0, 0, 1, 1], [np.size(leaf) for leaf in flat_leaves(case)])
        close(host(backend, Bg), np.where(owner[:, None] == owner, want.G, 0) @ want.gradient, 1e-12)
    assert len(runs) == 1


def flat_leaves(case):
    return [case.params()[a][b] for a in ("fc1", "fc2") for b in ("bias", "weight")]


@pytest.mark.parametrize("sizes", [(5,), (3, 3, 2)])
def test_objectives_and_operators_cross_the_boundary_of_a_jit(jax, backend, sizes):
    case = CASE._replace(sizes=sizes)
    want, v = dense(case), put(backend, np.arange(31.0))
    made, params = objective(case, backend), put(backend, case.params())

    # As arguments, ready or not; as results; closed over, used there first.
    apply = jax.jit(lambda A, v: A @ v)
    close(host(backend, apply(lg.GGN(made, params), v)), want.G @ np.arange(31.0), 1e-12)
    damped = lg.Damped(lg.GGN(made, params).prepare(), 0.5)
    close(host(backend, apply(damped, v)), want.G @ np.arange(31.0) + np.arange(31.0) / 2, 1e-12)
    ready = jax.jit(lambda o, p: lg.GGN(o, p).prepare())(made, params)
    close(host(backend, ready @ v), want.G @ np.arange(31.0), 1e-12)
    fresh = objective(case, backend)
    inside = jax.jit(lambda p, v: (lg.GGN(fresh, p) @ v, fresh.gradient(p), fresh.value(p)))
    Gv, gradient, value = inside(params, v)
    close(host(backend, Gv), want.G @ np.arange(31.0), 1e-12)
    close(host(backend, gradient), want.gradient, 1e-12)
    # The same objective and the same operator outside, afterwards: no tracer was kept.
    close(host(backend, fresh.gradient(params)), want.gradient, 1e-12)
    close(host(backend, fresh.value(params)), host(backend, value), 1e-14)
    G = lg.GGN(fresh, params)
    close(host(backend, jax.jit(lambda v: G @ v)(v)), want.G @ np.arange(31.0), 1e-12)
    close(host(backend, G @ v), want.G @ np.arange(31.0), 1e-12)
    close(host(backend, jax.jit(lambda: fresh.gradient(params))()), want.gradient, 1e-12)


def test_nothing_leaks(jax, backend, data, params):
    v = put(backend, np.arange(31.0))
    with jax.checking_leaks():
        for batches in ([data], [data, data]) if FULL else ([data, data],):
            made = lg.Objective(MODEL, lg.losses.CrossEntropy(), batches)
            G, H = lg.GGN(made, params), lg.Hessian(made, params)

            @jax.jit
            def inside(p, v, made=made, G=G, H=H):
                first = lg.GGN(made, p)
                return first @ v, G @ v, H @ v, made.gradient(p), lg.solve(lg.Damped(G, 1.0), v, lg.CG(steps=3)).x

            before = inside(params, v)
            close(host(backend, G @ v), host(backend, before[1]), 1e-14)
            close(host(backend, made.gradient(params)), host(backend, before[3]), 1e-14)
            close(host(backend, inside(params, v)[0]), host(backend, before[0]), 0.0)
            jax.vmap(lambda v, G=G: G @ v)(jax.numpy.stack([v, v]))
            close(host(backend, H @ v), host(backend, before[2]), 1e-14)
    gc.collect()


def test_vmap_over_damping_vectors_data_and_parameters(jax, backend, data, params):
    jnp, want = jax.numpy, dense(CASE)
    made = lg.Objective(MODEL, CASE.make_loss(), data)
    G, b = lg.GGN(made, params), put(backend, np.arange(31.0) / 31)
    dampings = jnp.array([0.1, 1.0, 10.0])
    x = jax.vmap(lambda d: lg.solve(lg.Damped(G, d), b, lg.CG(rtol=1e-12)).x)(dampings)
    for damping, row in zip((0.1, 1.0, 10.0), np.asarray(x), strict=True):
        close(row, np.linalg.solve(want.G + damping * np.eye(31), np.arange(31.0) / 31), 1e-9)
    V = put(backend, np.random.default_rng(0).standard_normal((3, 31)))
    close(jax.vmap(lambda v: G @ v)(V), np.asarray(V) @ want.G, 1e-12)

    # Per-example gradients and curvature: data and parameters as mapped axes.
    def one(x, y, w):
        single = lg.Objective(MODEL, lg.losses.CrossEntropy(reduction="sum"), (x[None], y[None], w[None]))
        return single.gradient(params), lg.GGN(single, params) @ b

    gradients, products = jax.vmap(one)(*data)
    weight = float(np.sum(np.asarray(data[2])))
    total = fill(gradients, lambda leaf: leaf.sum(0) / weight)
    close(host(backend, total), want.gradient, 1e-12)
    close(np.asarray(products).sum(0) / weight, want.G @ np.arange(31.0) / 31, 1e-12)
    stacked = fill(params, lambda leaf: jnp.stack([leaf, leaf + 1]))
    values = jax.vmap(made.value)(stacked)
    moved = dense(CASE, like(CASE.params(), flat(CASE.params()) + 1)).value
    close(values, [want.value, moved], 1e-12)


def test_values_are_differentiable_by_the_users_own_transformations(jax, backend, data, params):
    made = lg.Objective(MODEL, CASE.make_loss(), data)
    want = dense(CASE)
    close(host(backend, jax.grad(made.value)(params)), want.gradient, 1e-12)
    loss = jax.grad(lambda x: lg.Objective(MODEL, CASE.make_loss(), (x, *data[1:])).value(params))(data[0])
    assert loss.shape == data[0].shape
    jax.grad(lambda p: host_free(lg.GGN(made, p) @ params))(params)


def host_free(tree):
    return sum(leaf.sum() for leaf in (tree["fc1"]["bias"], tree["fc2"]["weight"]))


def test_data_are_checked_before_they_disappear_into_a_program(jax, backend, data, params):
    x, y, w = data
    for bad, message in (((x, y + 3, w), "class indices must lie in"), ((x * np.nan, y, w), "the inputs hold NaN")):
        for batches in ([bad], [data, bad]):
            made = lg.Objective(MODEL, lg.losses.CrossEntropy(), batches)
            for ask in (made.value, made.gradient):
                with pytest.raises(ValueError, match=message):
                    ask(params)
            # Inside somebody's program what is closed over can still be read ...
            made = lg.Objective(MODEL, lg.losses.CrossEntropy(), batches)
            with pytest.raises(ValueError, match=message):
                jax.jit(made.gradient)(params)
            # ... and arguments cannot.
            jax.jit(lambda p, o: o.gradient(p))(params, made)
    made = lg.Objective(MODEL, lg.losses.CrossEntropy(), [data, data])
    assert jax.jit(made.value)(params).shape == ()


def test_the_program_of_a_loop_looks_at_its_data_itself(jax, backend, data, params, monkeypatch):
    """Also where only copies of the first objective are ever asked; where it sees a fault, all is looked at anew."""
    f, seen = objective(CASE, backend), []
    f.with_data(data).value(params)  # a model that has not been asked may fail at anything: looked at before
    check, call = Term.check_ahead, type(backend).call
    monkeypatch.setattr(Term, "check_ahead", lambda self, x: (seen.append("look"), check(self, x))[1])
    monkeypatch.setattr(type(backend), "call", lambda self, *a: (seen.append("run"), call(self, *a))[1])
    f.with_data(data).value(params)
    assert seen == ["run"]
    with pytest.raises(ValueError, match="the inputs hold NaN"):
        f.with_data((data[0] * np.nan, *data[1:])).value(params)
    assert seen == ["run"] * 3 + ["look"]
    with pytest.raises(ValueError, match="the parameters hold NaN"):
        f.with_data(data).value(jax.tree.map(lambda leaf: leaf * np.nan, params))
    del seen[:]
    f.with_data(data).value_and_gradient(params)
    assert seen == ["run"]


def test_values_that_are_not_finite_of_data_that_are_good_are_told(jax, backend):
    f = lg.Objective.from_function(lambda p: 1.0 / p["w"][0])
    zero, one = {"w": put(backend, np.zeros(1))}, {"w": put(backend, np.ones(1))}
    for _ in range(2):
        assert [float(f.value(x)) for x in (one, zero)] == [1.0, np.inf]
        value, gradient = f.value_and_gradient(zero)
        assert (float(value), float(gradient["w"][0])) == (np.inf, -np.inf)


def test_a_loop_of_values_sees_new_parameters_models_and_faults(jax, backend, data, params):
    """The program of plain arguments says what a point says, for every loss that may use it."""
    jnp = jax.numpy
    f = objective(CASE, backend)
    for _ in range(2):
        for scale in (1.0, 0.5):
            new = jax.tree.map(lambda leaf, scale=scale: leaf * scale, params)
            close(f.value(new), f.at(new).value, 1e-13)
            close(f.with_data(data).value(new), f.at(new).value, 1e-13)
    x, y = jnp.ones((4, 3)), jnp.ones(4)
    g = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, y))
    for _ in range(3):
        assert float(g.value(jnp.zeros(3))) == 0.5
        with pytest.raises(TypeError, match="belong to numpy"):
            g.with_data((x, np.ones(4))).value(jnp.zeros(3))
        with pytest.raises(ValueError, match="shape"):
            g.with_data((x, jnp.ones(5))).value(jnp.zeros(3))
        with pytest.raises(ValueError, match="must be finite"):
            g.with_data((x, y * jnp.nan)).value(jnp.zeros(3))
        assert float(g.with_data([(x, y), (x, 2 * y)]).value(jnp.zeros(3))) == 1.25
        assert float(g.with_data((x, y, jnp.asarray([1.0, 0, 0, 0]))).value(jnp.zeros(3))) == 0.5


def test_a_loop_of_gradients_linearises_nothing_until_products_are_asked_for(jax, backend, monkeypatch):
    """Gradients alone keep no residuals; with products, gradient and products are of one pass again."""
    jnp, made = jax.numpy, []
    once = Term.linearize
    monkeypatch.setattr(Term, "linearize", lambda self, x: (made.append(1), once(self, x))[1])
    x, y = jnp.linspace(0.0, 1.0, 12).reshape(4, 3), jnp.arange(4.0)
    f = lg.Objective(lambda w, x: jnp.tanh(x @ w), lg.losses.SquaredError(), (x, y))
    w = jnp.asarray([0.3, -0.2, 0.5])
    f.gradient(w)
    del made[:]
    for _ in range(3):
        w = w - 0.1 * f.with_data((x, 2 * y)).gradient(w)
        want, slope = jax.value_and_grad(lambda w: jnp.mean((jnp.tanh(x @ w) - 2 * y) ** 2) / 2)(w)
        with_new = f.with_data((x, 2 * y))
        value, gradient = with_new.value_and_gradient(w)
        close(value, want, 1e-14)
        close(gradient, slope, 1e-14)
        assert with_new.value(w) is value
        assert not made
        with pytest.raises(ValueError, match="must be finite"):
            f.with_data((x, y * jnp.nan)).gradient(w)
        with pytest.raises(ValueError, match="shape"):
            f.with_data((x, jnp.ones(5))).gradient(w)
        with pytest.raises(ValueError, match="NaN or infinity"):
            f.gradient(w * jnp.nan)
        del made[:]  # what is refused is looked at anew
    lg.GGN(f, w) @ w
    calls, call = [], type(backend).call
    monkeypatch.setattr(type(backend), "call", lambda self, g, *a: (calls.append(g), call(self, g, *a))[1])
    for new in (0.5 * w, 0.25 * w):
        f.gradient(new)
        del calls[:]
        lg.GGN(f, new).prepare()
        assert not calls


def test_double_precision_that_is_switched_off_is_an_error_where_it_would_be_silent(jax):
    with jax.enable_x64(False):
        backend = lg.load("jax")
        with pytest.raises(TypeError, match="64-bit types switched off"):
            backend.asarray(np.ones(2), "float64")
        x = jax.numpy.ones((4, 3))
        made = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, x[:, 0]))
        assert lg.GGN(made, jax.numpy.ones(3)).dtype == "float32"
        close(made.gradient(jax.numpy.ones(3)), np.full(3, 2.0), 1e-6)


def test_no_warning_about_programs_that_are_compiled_here(jax, backend, monkeypatch):
    """Programs made here are compiled without XLA's wrong fusions, loops within loops included."""
    compiled = pytest.importorskip("linop_gn_jax.compiled")
    warned = []
    monkeypatch.setattr(compiled, "_warn_of_wrong_fusions", lambda: warned.append(1))
    made, params = lg.Objective.from_residuals(lambda p: p**2 - 2.0), put(backend, np.array([1.0, 3.0]))
    assert lg.minimize(made, params, max_steps=3).steps == 3
    assert not warned
    jax.jit(lambda p: lg.solve(lg.GGN(made, p), p, lg.CG(steps=1)).x)(params)
    assert warned


def test_many_leaves_are_neither_packed_nor_cut(jax):
    """Products of trees, value and gradient of models with more than 16 leaves have no program that cuts a vector."""
    jnp, rng = jax.numpy, np.random.default_rng(0)
    params = {f"w{i}": jnp.asarray(rng.standard_normal(2)) for i in range(18)}
    v = {name: jnp.asarray(rng.standard_normal(2)) for name in params}
    x, t = jnp.asarray(rng.standard_normal((3, 2))), jnp.asarray(rng.standard_normal((3, 2)))

    def model(p, x):
        return jnp.tanh(sum(p.values()) * x)

    def mean(p):
        return jnp.sum((model(p, x) - t) ** 2) / 6

    def same(a, b):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-12)

    whole = lg.Objective(model, lg.losses.SquaredError(), (x, t))
    halves = lg.Objective(model, lg.losses.SquaredError(), [(x[:2], t[:2]), (x[2:], t[2:])])
    same(whole.gradient(params), jax.grad(mean)(params))
    np.testing.assert_allclose(whole.value(params), mean(params), rtol=1e-12)
    same(lg.Hessian(whole, params) @ v, jax.jvp(jax.grad(mean), (params,), (v,))[1])
    _, Jv = jax.jvp(lambda p: model(p, x), (params,), (v,))
    want = jax.vjp(lambda p: model(p, x), params)[1](Jv / 3)[0]
    for made in (whole, halves) if FULL else (halves,):
        G = lg.GGN(made, params)
        same(G @ v, want)
    same(lg.Damped(G, 0.5) @ v, {name: want[name] + 0.5 * v[name] for name in v})  # which takes flat vectors
    np.testing.assert_allclose(lg.Jacobian(whole, params) @ v, Jv, rtol=1e-9, atol=1e-14)
    made = jax.jit(lambda p, v: (whole.gradient(p), lg.GGN(whole, p) @ v)).lower(params, v).as_text()
    assert "slice" not in made
    assert "concatenate" not in made
    params["w3"] = params["w3"].at[1].set(np.nan)
    with pytest.raises(ValueError, match=r"NaN or infinity in \['w3'\]"):
        whole.gradient(params)
