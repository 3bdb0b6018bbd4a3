"""An objective's l2: 1/2 sum lambda p^2 beside the mean or sum, lambda p in the gradient, lambda in GGN and Hessian."""

import numpy as np
import pytest
from systems import in_full

import linop_gn as lg
from linop_gn.testing.strategies import array

rng = np.random.default_rng(0)
P = {"b": rng.standard_normal(3), "w": rng.standard_normal((2, 3))}
X, Y = rng.standard_normal((5, 2)), np.array([0, 2, 1, 0, 2])
FLAT = np.concatenate([P["b"], P["w"].ravel()])
WEIGHTS = {"b": np.full(3, 0.1), "w": abs(P["w"])}
PRIORS = {
    "number": (0.3, np.full(9, 0.3)),
    "numbers": ({"b": 0.0, "w": 0.3}, np.repeat([0.0, 0.3], [3, 6])),
    "arrays": (WEIGHTS, np.concatenate([np.full(3, 0.1), abs(P["w"]).ravel()])),
}
SPLITS = None, "list", "stream"


def model(p, x):
    return x @ p["w"] + p["b"]


def made(name, l2, split=None):
    """Parameters, and the objective without and with its l2: over one batch, several, or a stream."""
    backend = lg.load("numpy" if name == "numpy by torch" else name)
    dtypes = ("float32", "int32") if name == "jax" else ("float64", "int64")
    x, y = array(backend, X, dtypes[0]), array(backend, Y, dtypes[1])
    if isinstance(l2, dict):
        l2 = {k: array(backend, v, dtypes[0]) if isinstance(v, np.ndarray) else v for k, v in l2.items()}
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    data = {None: (x, y), "list": batches, "stream": type("Loader", (), {"__iter__": lambda _: iter(batches)})()}[split]
    options = {"derivatives": "torch"} if name == "numpy by torch" else {}
    params = {k: array(backend, v, dtypes[0]) for k, v in P.items()}
    both = (lg.Objective(model, lg.losses.CrossEntropy(), data, l2=given, **options) for given in (None, l2))
    return (backend, params, *both)


CASES = [(name, prior, split) for name in ("torch", "numpy by torch") for prior in PRIORS for split in SPLITS]


@pytest.mark.parametrize(("name", "prior", "split"), [*CASES, ("jax", "arrays", None)])
def test_it_is_added_to_all(name, prior, split):
    l2, lam = PRIORS[prior]
    backend, p, plain, fit = made(name, l2, split)
    tolerance = 1e-5 if name == "jax" else 1e-12
    assert float(fit.value(p)) == pytest.approx(float(plain.value(p)) + 0.5 * (lam * FLAT**2).sum(), rel=tolerance)
    space = lg.GGN(fit, p).domain
    difference = backend.to_numpy(fit.at(p).gradient) - backend.to_numpy(plain.at(p).gradient)
    np.testing.assert_allclose(difference, lam * FLAT, atol=tolerance)
    V = space.random(0, columns=2)
    for operator in (lg.GGN, lg.Hessian, lg.BlockGGN)[: 1 if name == "jax" else 3]:
        for v in (V, V[:, 0])[name == "jax" :]:
            extra = backend.to_numpy(operator(fit, p) @ v) - backend.to_numpy(operator(plain, p) @ v)
            np.testing.assert_allclose(extra.T, lam * backend.to_numpy(v).T, atol=tolerance)


def test_the_laws_hold():
    for name, operators in (("torch", (lg.GGN, lg.Hessian, lg.BlockGGN)), ("numpy by torch", (lg.GGN,))):
        _, p, _, fit = made(name, WEIGHTS)
        for operator in operators:
            assert lg.validate(operator(fit, p)).passed


def test_validate_misses_one_that_is_left_out(monkeypatch):
    monkeypatch.setattr(lg.GGN, "regularised", False)
    _, p, _, fit = made("torch", 0.3)
    assert not lg.validate(lg.GGN(fit, p)).passed


def test_blocks_and_their_solvers():
    _, p, _, fit = made("torch", PRIORS["arrays"][0])
    B = lg.BlockGGN(fit, p, blocks="leaf")
    dense, g = B.to_dense(), fit.at(p).gradient
    for block, part in zip(B.diagonal_blocks().values(), B.domain.slices.values(), strict=True):
        np.testing.assert_allclose(block.to_dense(), dense[part, part], atol=1e-12)
    right = np.linalg.solve(dense.numpy() + 0.1 * np.eye(9), g.numpy())
    for solver in (lg.CG(rtol=1e-12), lg.Cholesky(), lg.Blockwise(lg.CG(rtol=1e-12))):
        np.testing.assert_allclose(lg.solve(lg.Damped(B, 0.1), g, solver).x, right, atol=1e-8)


def test_fits_end_where_its_gradient_is_zero():
    for prior, (l2, lam) in PRIORS.items():
        _, p, plain, fit = made("torch", l2)
        for method in (None, lg.NewtonCG(), lg.TrustRegion()) if prior == "arrays" else (None,):
            end = lg.minimize(fit, p, method, max_steps=50).params
            space = lg.GGN(fit, p).domain
            slope = plain.at(end).gradient.numpy() + lam * space.pack(end).numpy()
            assert abs(slope).max() < 1e-8, prior
    again = fit.with_data((fit.batches[0].inputs[:2], fit.batches[0].targets[:2]))
    assert again.l2 is fit.l2


def test_residuals_and_functions_have_one():
    p = np.array([1.0, -2.0])
    r = lg.Objective.from_residuals(lambda p: 2 * p - 1, jacobian=lambda p: 2 * np.eye(2), l2=0.5)
    np.testing.assert_allclose(r.gradient(p), 2 * (2 * p - 1) + 0.5 * p)
    np.testing.assert_allclose(lg.GGN(r, p).to_dense(), 4.5 * np.eye(2))
    f = lg.Objective.from_function(
        lambda p: p @ p, gradient=lambda p: 2 * p, hvp=lambda p, v: 2 * v, l2=np.array([1.0, 3.0])
    )
    np.testing.assert_allclose(lg.Hessian(f, p).to_dense(), np.diag([3.0, 5.0]))
    assert float(f.value(p)) == 5.0 + 0.5 * (1 + 12)


GRAM = [("torch", 0.0), ("torch", 0.1), ("numpy by torch", 0.1), pytest.param("jax", 0.1, marks=in_full)]


@pytest.mark.parametrize(("name", "damping"), GRAM)
def test_the_gram_form_adds_a_number_to_the_damping(name, damping):
    backend, p, _, fit = made(name, 0.3)
    A, g = lg.Damped(lg.GGN(fit, p), damping), fit.at(p).gradient
    tolerance = 1e-5 if name == "jax" else 1e-11
    for inner in (None, lg.CG(rtol=1e-7)):
        solution = lg.solve(A, g, lg.GramSolve(rtol=tolerance, solver=inner))
        assert solution.succeeded
        right = np.linalg.solve(backend.to_numpy(A.to_dense()), backend.to_numpy(g))
        np.testing.assert_allclose(solution.x, right, atol=10 * tolerance)
    assert {"GramSolve, CG", "GramSolve, Cholesky"} <= {row.route for row in lg.cost(A)}


def test_none_is_no_prior():
    for none in (0, 0.0, np.float32(0), lg.load("torch").asarray(0.0, "float64", None)):
        _, p, plain, fit = made("torch", none)
        np.testing.assert_array_equal(lg.Gram(fit, p).to_dense(), lg.Gram(plain, p).to_dense())
    run = lg.minimize(fit, p, lg.EGN(damping=0.1), max_steps=2)
    assert run.value < fit.value(p)


def test_a_fit_by_the_gram_form_ends_where_its_gradient_is_zero():
    _, p, _, fit = made("torch", 0.3)
    end = lg.minimize(fit, p, lg.EGN(damping=1e-3), max_steps=50).params
    assert abs(fit.at(end).gradient.numpy()).max() < 1e-6


def test_it_is_data_of_a_compiled_program(jax):
    _, p, plain, fit = made("jax", 0.3)
    found = jax.jit(lambda objective, p: objective.gradient(p))(fit, p)
    np.testing.assert_allclose(found["w"], plain.gradient(p)["w"] + 0.3 * p["w"], rtol=1e-5, atol=1e-6)


def test_what_cannot_have_one_says_so():
    _, p, _, fit = made("torch", 0.3)
    for ask in (
        lambda: lg.Gram(fit, p),
        lambda: lg.minimize(fit, p, lg.InnerGaussNewton()),
        lambda: lg.minimize(fit, p, lg.methods.LeastSquares()),
    ):
        with pytest.raises(ValueError, match=r"objective's l2: use what takes products with lg.GGN, such as lg.Lev"):
            ask()
    r = lg.Objective.from_residuals(lambda p: 2 * p - 1, jacobian=lambda p: 2 * np.eye(2), l2=0.5)
    with pytest.raises(ValueError, match=r"append sqrt\(l2\) \* p to the residuals, or use what"):
        lg.minimize(r, np.ones(2), lg.methods.LeastSquares())
    _, p, _, each = made("torch", WEIGHTS)
    for fit_, options in ((each, {}), (fit, {"x_scale": {k: 1 + v**2 for k, v in p.items()}})):
        with pytest.raises(ValueError, match="GramSolve adds an l2 that is one number to the damping"):
            lg.minimize(fit_, p, lg.EGN(damping=0.1, **options), max_steps=1)
    for l2, message in ((-1.0, "l2 must be a finite number >= 0"), ({"w": 0.1}, r"expected a number, or a tree with")):
        with pytest.raises(ValueError, match=message):
            made("torch", l2)[3].value(p)


@pytest.mark.filterwarnings("error")
def test_one_that_requires_gradients_is_a_number_here(torch):
    _, p, _, fit = made("torch", 0.3)
    l2 = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    asks = lg.Objective(fit.model, fit.loss, fit.batches[0], l2=l2)
    assert asks.value(p) == fit.value(p)
    assert not asks.value(p).requires_grad
    for method in (lg.EGN(damping=0.1), lg.FirstOrder(lg.optimisers.SGD(), 0.1)):
        assert lg.minimize(asks, p, method, max_steps=1).value == lg.minimize(fit, p, method, max_steps=1).value
    g, A = fit.at(p).gradient, lg.Damped(lg.GGN(fit, p), 0.1)
    for solver in (lg.CG(rtol=1e-12), lg.GramSolve(rtol=1e-12)):
        l2.grad = None
        lg.solve(lg.Damped(lg.GGN(asks, p), 0.1), g, solver).x.sum().backward()
        x, u = (lg.solve(A, b, lg.Cholesky()).x for b in (g, torch.ones_like(g)))
        torch.testing.assert_close(l2.grad, -(u @ x))
