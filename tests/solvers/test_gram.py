"""The Gram-space solve equals the dense primal one: losses, reductions, weights, batches, right-hand sides, routes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import host as flat_host
from systems import in_full

import linop_gn as lg
from linop_gn import GramSolve, Status
from linop_gn.operators.congruence import Congruence

from ..curvature.cases import Case, Streamed, cases, dense, objective, put

IN_CI_ON_JAX = ("test_on_spoiled_and_on_foreign_arrays", "test_a_warm_start_and_a_zero_right_hand_side")

EXACT = GramSolve(rtol=1e-10)
INNER = GramSolve(rtol=1e-10, solver=lg.CG(rtol=1e-13, max_steps=400))


def near(got, G, damping, b, tolerance=1e-9):
    """Whether x is (G + damping)^-1 b, as far as rounding of G and b allow."""
    want = np.linalg.solve(G + damping * np.eye(len(G)), b)
    slack = tolerance * (1 + np.linalg.norm(G, 2) / damping) * np.linalg.norm(want, axis=0).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=slack)


def check(case, backend, damping, few=False):
    made, params, want = objective(case, backend), put(backend, case.params()), dense(case)
    A = lg.Damped(lg.GGN(made, params), damping)
    b = np.random.default_rng(case.seed).standard_normal((len(want.G), 2))
    b[:, 0] = -want.gradient
    gradient = -flat_host(backend, made.at(params).gradient)
    by_columns = lg.replace(EXACT, rows=False)
    pairs = [(EXACT, gradient), (EXACT, b), (INNER, gradient)]
    if not few:
        pairs += [(by_columns, gradient), (by_columns, b), (INNER, b), (EXACT, b[:, 1])]
    for method, rhs in pairs:
        step = lg.solve(A, put(backend, rhs), method)
        assert step.succeeded or "STAGNATED" in str(step.status)  # by rounding of A x, where G is large beside damping
        near(flat_host(backend, step.x), want.G, damping, rhs)


@settings(max_examples=15)
@given(cases(networks=("mlp", "convolutional", "residual", "single")), st.sampled_from([1e-3, 0.1, 10.0]))
def test_where_derivatives_are_supplied(numpy_backend, case, damping):
    check(case, numpy_backend, damping)


@settings(max_examples=8)
@given(cases(networks=("mlp", "attention", "single", "decay")), st.sampled_from([1e-3, 0.1, 10.0]))
def test_in_torch(torch, case, damping):
    check(case, lg.load("torch"), damping)


@settings(max_examples=3)
@given(cases(networks=("single",)), st.sampled_from([1e-3, 0.1, 10.0]))
def test_on_spoiled_and_on_foreign_arrays(backend, case, damping):
    if backend.name in ("poison", "array_api_strict"):
        check(case, backend, damping)


@in_full  # a start and data under jit are below
def test_in_jax(jax):
    for seed in range(2):
        check(Case("single", "softmax", "mean", seed, "weights", sizes=(2, 2, 1)), lg.load("jax"), 0.1, few=True)


def wide(backend, dtype="float64", decay=2.0, N=8, C=3, n=60):
    """A linear softmax model with more parameters than outputs, whose inputs spread over decades."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, n)) * 10.0 ** -np.linspace(0, decay, N)[:, None]
    y = rng.integers(0, C, N)
    Xa = backend.asarray(X, dtype)

    def model(w, x):
        return x @ w

    given = {} if backend.calculus is not None else {"jvp": lambda w, x, v: x @ v, "vjp": lambda w, x, u: x.T @ u}
    made = lg.Objective(model, lg.losses.CrossEntropy(), (Xa, backend.asarray(y, "int64")), **given)
    return made, backend.asarray(0.3 * rng.standard_normal((n, C)), dtype)


def exact_gradient_step(made, params, backend, damping):
    """(G + damping)^-1 (-g) in float64 from the data of :func:`wide`."""
    X = flat_host(backend, made.batches[0].inputs)
    y = flat_host(backend, made.batches[0].targets).astype(int)
    w = flat_host(backend, params)
    z = X @ w
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    N, C = p.shape
    r = p - np.eye(C)[y]
    H = np.einsum("ic,cd->icd", p, np.eye(C)) - np.einsum("ic,id->icd", p, p)
    G = np.einsum("ia,icd,ib->acbd", X, H, X).reshape(w.size, w.size) / N
    g = (X.T @ r / N).reshape(-1)
    d = damping * np.linalg.norm(G, 2)
    return np.linalg.solve(G + d * np.eye(len(G)), -g), d


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_gradient_in_single_precision_and_a_small_damping(request, name):
    """Where the formula of Sherman, Morrison and Woodbury alone leaves 1e-2, and a primal factorisation 1e-3."""
    if name != "numpy":
        request.getfixturevalue(name)
    backend = lg.load(name)
    made, params = wide(backend, "float32")
    for damping in (1e-1, 1e-3, 1e-5):
        want, d = exact_gradient_step(made, params, backend, damping)
        step = lg.solve(lg.Damped(lg.GGN(made, params), d), -made.at(params).gradient, GramSolve(rtol=1e-4))
        assert step.succeeded
        assert int(step.steps) == 1
        error = np.linalg.norm(flat_host(backend, step.x) - want) / np.linalg.norm(want)
        assert error < 1e-5, (damping, error)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-5), ("float64", 1e-10)])
def test_what_lies_beside_the_gradient_is_solved_for_however_little(torch, dtype, tolerance):
    """In one vector, and in columns of which some are multiples of the gradient, some nearly, and one is not at all."""
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    net = net.to(getattr(torch, dtype))
    params, x = dict(net.named_parameters()), torch.randn(4, 5, dtype=getattr(torch, dtype))
    made = lg.Objective(net, lg.losses.CrossEntropy(), (x, torch.tensor([0, 2, 1, 2])))
    A = lg.Damped(lg.GGN(made, params), 0.1)
    g, v = made.at(params).gradient, A.domain.random(0)
    sides = [-2 * g + part * g.norm() * v / v.norm() for part in (0.0, 1e-7, 1e-5, 1e-3, 1e-1)] + [v]
    columns = lg.solve(A, torch.stack(sides, dim=1), GramSolve(rtol=tolerance))
    for i, b in enumerate(sides):
        alone = lg.solve(A, b, GramSolve(rtol=tolerance))
        assert alone.succeeded
        for x in (alone.x, columns.x[:, i]):
            assert float((A @ x - b).norm()) <= 2 * tolerance * float(b.norm())


def test_refinement_makes_up_for_cancellation(numpy_backend):
    made, params = wide(numpy_backend, "float32")
    _, d = exact_gradient_step(made, params, numpy_backend, 1e-2)
    A = lg.Damped(lg.GGN(made, params), d)
    b = (A @ A.domain.random(1)).astype("float32")
    once, more = (lg.solve(A, b, GramSolve(rtol=0.0, max_steps=steps)) for steps in (1, 10))
    assert float(more.residual) < 0.3 * float(once.residual)
    assert float(more.residual) <= 1e-6 * np.linalg.norm(b)
    assert (once.status, more.status) == (Status.MAX_STEPS, Status.STAGNATED)


def test_a_damping_below_rounding_of_the_gram_matrix(numpy_backend):
    made, params = wide(numpy_backend, "float32", decay=5.0)
    A = lg.Damped(lg.GGN(made, params), 1e-12)
    step = lg.solve(A, -made.at(params).gradient, GramSolve(rtol=1e-3))
    assert np.isfinite(step.x).all()
    assert step.status in (Status.CONVERGED, Status.STAGNATED, Status.MAX_STEPS)
    assert float(step.residual) < float(np.linalg.norm(made.at(params).gradient))


def test_slow_refinement_reaches_what_rounding_allows(torch):
    """One solve leaves half of the residual, ||G|| being 4e5 times the damping; x to rounding leaves 3e-3."""
    torch.manual_seed(7)
    net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5))
    x, y = torch.randn(32, 20), torch.randn(32, 5)
    with torch.no_grad():
        net[2].weight *= 20
    G = lg.GGN(lg.Objective(net, lg.losses.SquaredError(), (x, y)), dict(net.named_parameters()))
    b = G.domain.random(7)
    step = lg.solve(lg.Damped(G, 1e-3), b, GramSolve(rtol=1e-4))
    assert not step.succeeded
    assert step.residual < 2e-2 * b.norm()


@settings(max_examples=20)
@given(
    st.sampled_from(["deep", "norm", "convolutional", "recurrent", "batch norm", "batch norm by hand", "in part"]),
    st.sampled_from(["float32", "float64"]),
    st.floats(-8, 2),
    st.sampled_from(["gradient", "random", "mixed", "columns"]),
    st.integers(0, 9),
)
def test_a_success_is_a_fact(torch, name, dtype, exponent, kind, seed):
    """Whatever the model and the damping: the residual of what is said to be solved is small by the dense matrix."""
    from ..curvature.layers.models import drawn

    net, x = drawn(name)
    eps, tolerance, damping = np.finfo(dtype).eps, {"float32": 1e-3, "float64": 1e-7}[dtype], 10.0**exponent
    y, w = torch.arange(6) % 2, torch.tensor([1.0, 0, 2, 0.5, 1, 3], dtype=torch.float64)
    J, H = (
        made(lg.Objective(net, lg.losses.CrossEntropy(), (x, y, w)), dict(net.named_parameters())).to_dense().numpy()
        for made in (lg.Jacobian, lg.LossHessian)
    )
    matrix = J.T @ H @ J + damping * np.eye(J.shape[1])
    single = getattr(torch, dtype)
    net, x = net.to(single), x.to(single) if x.is_floating_point() else x
    made, params = lg.Objective(net, lg.losses.CrossEntropy(), (x, y, w.to(single))), dict(net.named_parameters())
    G = lg.GGN(made, params)
    g, v, u = made.at(params).gradient, G.domain.random(seed), G.domain.random(seed + 1)
    b = {"gradient": g, "random": v, "mixed": g + 1e-3 * v, "columns": torch.stack([v, g, u], 1)}[kind]
    step = lg.solve(lg.Damped(G, damping), b, GramSolve(rtol=tolerance))
    got, rhs = step.x.numpy().astype(float), b.numpy().astype(float)
    left, size = np.linalg.norm(matrix @ got - rhs, axis=0), np.linalg.norm(rhs, axis=0)
    room = 1.01 * tolerance * size + 100 * eps * np.linalg.norm(matrix, 2) * np.linalg.norm(got, axis=0)
    solved = np.asarray(step.code) == lg.Status.CONVERGED
    assert np.all(np.isfinite(got))
    assert np.all((left <= room) | ~solved)
    assert np.all(solved | (eps * np.linalg.norm(matrix, 2) / damping > 1e-3 * tolerance))


def test_products_and_history(numpy_backend):
    made, params = wide(numpy_backend)
    A = lg.Damped(lg.GGN(made, params), 0.1)
    m = 8 * 3
    step = lg.solve(A, -made.at(params).gradient, GramSolve())
    assert (int(step.steps), int(step.products)) == (1, m + 1)
    np.testing.assert_allclose(step.history["residual"][0], np.linalg.norm(made.at(params).gradient))
    columns = lg.solve(A, -made.at(params).gradient, GramSolve(rows=False))
    assert int(columns.products) == m + 2
    inner = lg.solve(A, -made.at(params).gradient, GramSolve(solver=lg.CG(rtol=1e-8)))
    assert inner.succeeded
    assert int(inner.products) < m + 2
    model = 0.5 * step.x @ (A @ step.x) + made.at(params).gradient @ step.x
    np.testing.assert_allclose(float(step.model), model, rtol=1e-10)


def test_by_layers_k_belongs_to_the_operator(torch):
    """Whatever dampings and right-hand sides: two passes for each solve beside the residual's product."""
    made, params = wide(lg.load("torch"))
    G, b = lg.GGN(made, params), -made.at(params).gradient
    for damping in (0.1, 1.0):
        step = lg.solve(lg.Damped(G, damping), b, EXACT)
        assert (step.succeeded, int(step.products)) == (True, 3)
    (told,) = lg.cost(lg.Damped(G, 0.1), EXACT)
    assert (told.products, told.note) == (3 + 3, "24 outputs; by layers")
    for asked in (GramSolve(rows=True), GramSolve(rows=False), INNER):
        assert "by layers" not in lg.cost(lg.Damped(G, 0.1), asked)[0].note


def test_methods_make_k_once_for_a_point(torch, monkeypatch):
    from linop_gn.curvature import gram

    calls, matrix = [], gram._matrix
    monkeypatch.setattr(gram, "_matrix", lambda *given: calls.append(1) or matrix(*given))
    made, params = wide(lg.load("torch"))
    result = lg.minimize(made, params, lg.LevenbergMarquardt(solver=EXACT, damping=1e-8), max_steps=4)
    columns = lg.minimize(
        made, params, lg.LevenbergMarquardt(solver=lg.replace(EXACT, rows=False), damping=1e-8), max_steps=4
    )
    np.testing.assert_allclose(result.history["value"], columns.history["value"], rtol=1e-6)
    assert len(calls) <= 5


def test_a_warm_start_and_a_zero_right_hand_side(backend):
    if backend.name == "array_api_strict":
        pytest.skip("the model is written for arrays that multiply themselves")
    made, params = wide(backend)
    A = lg.Damped(lg.GGN(made, params), 0.1)
    b = -made.at(params).gradient
    x = lg.solve(A, b, EXACT).x
    again = lg.solve(A, b, GramSolve(rtol=1e-9), x0=x)
    assert (again.status, int(again.steps)) == (Status.CONVERGED, 0)
    off = lg.solve(A, b, EXACT, x0=backend.copy(b))
    np.testing.assert_allclose(flat_host(backend, off.x), flat_host(backend, x), atol=1e-10)
    none = lg.solve(A, backend.zeros_like(b), GramSolve())
    assert (none.status, int(none.steps)) == (Status.CONVERGED, 0)
    np.testing.assert_array_equal(flat_host(backend, none.x), 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_size_of_the_right_hand_side_does_not_matter(numpy_backend, scale, dtype):
    made, params = wide(numpy_backend, dtype)
    A, b = lg.Damped(lg.GGN(made, params), 0.1), -made.at(params).gradient
    one, other = (lg.solve(A, (s * b).astype(dtype), GramSolve()).x for s in (1.0, scale))
    np.testing.assert_allclose(other.astype(float) / scale, one, rtol=1e-3, atol=1e-5 * abs(one).max())


def test_the_size_of_the_gradient_does_not_matter(numpy_backend):
    """Below 1e-19 its squares have few digits in single precision."""
    made, params = wide(numpy_backend, "float32")
    (batch,), size = made.batches, np.float32(10**-22.5)
    data, loss = (batch.inputs, batch.targets, np.full(8, size)), lg.losses.CrossEntropy(reduction="sum")
    products = {"jvp": lambda w, x, v: x @ v, "vjp": lambda w, x, u: x.T @ u}
    small = lg.Objective(lambda w, x: x @ w, loss, data, **products)
    A, b = lg.Damped(lg.GGN(small, params), 1e-3 * float(size)), -small.at(params).gradient
    assert lg.solve(A, b, GramSolve(rtol=1e-4)).succeeded


def test_what_is_not_finite_has_a_status(numpy_backend):
    made, params = wide(numpy_backend)
    A, b = lg.Damped(lg.GGN(made, params), 0.1), made.at(params).gradient
    b[3] = np.nan
    assert lg.solve(A, b, GramSolve()).status is Status.NONFINITE_INPUT
    huge = lg.Objective.from_residuals(lambda w: 1e200 * w, jacobian=lambda w: 1e200 * np.eye(2))
    with np.errstate(all="ignore"):
        step = lg.solve(lg.Damped(lg.GGN(huge, np.ones(2)), 1.0), np.ones(2), GramSolve())
    assert not step.succeeded
    assert np.isfinite(step.x).all()


def test_inside_levenberg_marquardt(numpy_backend):
    made, params = wide(numpy_backend)
    ways = [lg.CG(rtol=1e-12, max_steps=500), GramSolve(rtol=1e-12)]
    one, other = (lg.minimize(made, params, lg.LevenbergMarquardt(solver=way), max_steps=6) for way in ways)
    np.testing.assert_allclose(one.history["value"], other.history["value"], rtol=1e-8)
    np.testing.assert_allclose(one.history["damping"], other.history["damping"], rtol=1e-5)


def test_under_jit_data_and_damping_are_data(jax):
    ops = lg.load("jax")
    made, params = wide(ops)

    def run(damping, shift):
        at = params + shift
        return lg.solve(lg.Damped(lg.GGN(made, at), damping), -made.gradient(at), GramSolve(rtol=1e-10)).x

    run(0.1, 0.0)
    before = ops.compilations()
    outside = run(0.2, 0.1)
    assert ops.compilations() == before
    np.testing.assert_allclose(jax.jit(run)(0.2, 0.1), outside, rtol=1e-8)


def test_trees_go_in_and_come_out(numpy_backend):
    case = Case("mlp", "softmax", "mean", 1)
    made, params = objective(case, numpy_backend), put(numpy_backend, case.params())
    A = lg.Damped(lg.GGN(made, params), 0.1)
    step = lg.solve(A, made.gradient(params), GramSolve())
    assert step.x["fc1"]["weight"].shape == params["fc1"]["weight"].shape
    flat = lg.solve(A, made.at(params).gradient, GramSolve())
    np.testing.assert_allclose(A.domain.pack(step.x), flat.x)


def test_errors_say_what_to_do(torch, numpy_backend):
    made, params = wide(numpy_backend)
    G = lg.GGN(made, params)
    b = made.at(params).gradient
    for A, message in (
        (lg.Damped(lg.BlockGGN(made, params), 1.0), r"GramSolve needs lg\.Damped\(lg\.GGN.*got Damped.*Use lg\.CG"),
        (G, "needs a positive damping"),
        (lg.Damped(G, 0.0), "needs a positive damping"),
    ):
        with pytest.raises(ValueError, match=message):
            lg.solve(A, b, GramSolve())
    with pytest.raises(ValueError, match=r"Gram matrix of 24 outputs would take .*solver=lg\.CG"):
        lg.solve(lg.Damped(G, 1.0), b, GramSolve(most_bytes=1000))
    with pytest.raises(TypeError, match="solver must be one for square systems"):
        GramSolve(solver="cholesky")
    with pytest.raises(ValueError, match="max_steps must be a whole number"):
        GramSolve(max_steps=-1)
    x, p = torch.ones((2, 3), dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    own = lg.Objective(lambda p, x: x @ p, lambda z, y: (z - y) ** 2, (x, torch.ones(2)))
    with pytest.raises(ValueError, match="GramSolve needs a root S"):
        lg.solve(lg.Damped(lg.GGN(own, p), 1.0), p, GramSolve())
    streamed = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), Streamed([(x, torch.ones(2))]))
    with pytest.raises(ValueError, match="streamed"):
        lg.solve(lg.Damped(lg.GGN(streamed, p), 1.0), p, GramSolve())


@pytest.mark.parametrize("middle", [True, False])
def test_low_rank_has_its_root_at_hand(backend, middle):
    rng = np.random.default_rng(0)
    U, m, b = rng.standard_normal((40, 6)), np.linspace(0, 2, 6), rng.standard_normal((40, 2))
    A = lg.LowRank(put(backend, U), put(backend, m) if middle else None)
    G = (U * m if middle else U) @ U.T
    methods = (EXACT,) if "compiled" in backend.capabilities else (EXACT, INNER)
    for method, rhs in [(method, rhs) for method in methods for rhs in (b, b[:, 0])]:
        step = lg.solve(lg.Damped(A, 0.1), put(backend, rhs), method)
        assert step.succeeded
        near(flat_host(backend, step.x), G, 0.1, rhs)
    s = np.linspace(1, 2, 40)
    scaled = lg.Damped(Congruence(A, put(backend, s)), 0.1)
    step = lg.solve(scaled, put(backend, b[:, 0]), EXACT)
    near(flat_host(backend, step.x), s[:, None] * G * s, 0.1, b[:, 0])
    (told,) = lg.cost(scaled, EXACT)
    assert (told.products, told.note) == (int(step.products), "rank 6")


def test_low_rank_that_has_no_root_is_refused():
    U = np.eye(5)[:, :2]
    for A in (lg.LowRank(U, np.eye(2), psd=True), lg.LowRank(U, np.array([1.0, -1.0]))):
        with pytest.raises(ValueError, match="diagonal M that is known to be psd"):
            lg.solve(lg.Damped(A, 0.1), np.ones(5), GramSolve())
    with pytest.raises(ValueError, match="positive damping"):
        lg.solve(lg.LowRank(U), np.ones(5), GramSolve())
