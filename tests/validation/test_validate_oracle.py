"""The oracles of ``lg.validate`` against matrices known otherwise, its differences against known derivatives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.validation.algebra import lanczos
from linop_gn.validation.differences import along, derivative
from linop_gn.validation.matrices import Matrices
from linop_gn.validation.measure import NotApplicableError, leafwise, relative
from linop_gn.validation.oracle import Oracle
from tests.curvature.cases import Case, dense, objective, put

IN_CI_ON_JAX = ("test_the_hessian_oracle",)

LIMIT = 1_000_000
BACKENDS = ["numpy", "torch", "jax"]


def at_point(request, name, case, limit=LIMIT):
    if name != "numpy":
        request.getfixturevalue(name)
    backend = lg.load(name)
    return Matrices(objective(case, backend).at(put(backend, case.params())), limit)


MLP, TRANSFORMER = Case("mlp", "softmax", "mean", 1, "weights", (1, 3)), Case("transformer", "squared", "sum", 2)


@pytest.mark.parametrize(
    ("name", "case"), [*((name, MLP) for name in BACKENDS), ("numpy", TRANSFORMER), ("torch", TRANSFORMER)]
)
def test_the_gauss_newton_oracle(request, name, case):
    at, want = at_point(request, name, case), dense(case)
    got = at.gauss_newton(np.eye(at.n))
    assert relative(got, want.G) <= (10 * at.uncertainty if name == "numpy" else 1e-13)
    assert at.uncertainty < (1e-8 if name == "numpy" else 1e-300)
    assert at.note == ""
    assert at.twin.value(at.twin.x) == pytest.approx(want.value, rel=1e-13)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_products_without_matrices_are_those_of_the_matrices(request, name):
    case = Case("mlp", "softmax", "mean", 1, "weights", (2, 2))
    whole = at_point(request, name, case)
    small = at_point(request, name, case, limit=whole.n * 2)
    V = np.random.default_rng(0).standard_normal((whole.n, 2))
    if name == "numpy":
        with pytest.raises(NotApplicableError, match="too large for differences"):
            small.gauss_newton(V)
        return
    assert relative(small.gauss_newton(V), whole.gauss_newton(V)) < 1e-9
    assert small.uncertainty < 1e-9
    unit = np.eye(whole.n)[:, [0, 3]]
    assert relative(small.hessian(unit), whole.hessian(unit)) < 1e-13
    assert relative(small.hessian(V), whole.hessian(V)) < 1e-9


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_the_hessian_oracle(request, name):
    """Of logistic regression, X^T diag(p (1 - p)) X / N."""
    request.getfixturevalue(name)
    backend, rng = lg.load(name), np.random.default_rng(0)
    X, w = rng.standard_normal((9, 4)), rng.standard_normal(4)
    data = put(backend, X), put(backend, rng.integers(0, 2, 9))
    at = Matrices(lg.Objective(lambda w, x: x @ w, lg.losses.BinaryCrossEntropy(), data).at(put(backend, w)), LIMIT)
    p = 1 / (1 + np.exp(-X @ w))
    assert relative(at.hessian(np.eye(4)), X.T @ np.diag(p * (1 - p) / 9) @ X) < 1e-14
    assert relative(at.gauss_newton(np.eye(4)), X.T @ np.diag(p * (1 - p) / 9) @ X) < 1e-14


def test_the_hessian_oracle_of_a_known_function(torch):
    rosenbrock = lg.Objective.from_function(lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2)
    at = Matrices(rosenbrock.at(torch.tensor([0.5, 2.0], dtype=torch.float64)), LIMIT)
    x, y = 0.5, 2.0
    want = np.array([[2 - 400 * (y - 3 * x**2), -400 * x], [-400 * x, 200.0]])
    assert relative(at.hessian(np.eye(2)), want) < 1e-14


def test_composites_are_worked_out_by_the_rules_of_matrices(numpy_backend):
    rng = np.random.default_rng(0)
    M, N, d = rng.standard_normal((4, 3)), rng.standard_normal((3, 3)), rng.random(4)
    A, B, D, L = lg.Dense(M), lg.Dense(N), lg.Diagonal(d), lg.LowRank(M, np.array([1.0, 2.0, 3.0]))
    block = np.zeros((7, 6))
    block[:4, :3], block[4:, 3:] = M, N
    known = {
        A.T @ D @ A: M.T @ np.diag(d) @ M,
        0.5 * (A @ B): 0.5 * M @ N,
        lg.Damped(L, 0.25): M @ np.diag([1.0, 2.0, 3.0]) @ M.T + 0.25 * np.eye(4),
        L - 2.0 * lg.Identity(D.domain): M @ np.diag([1.0, 2.0, 3.0]) @ M.T - 2 * np.eye(4),
        lg.BlockDiagonal((A, B)): block,
    }
    for operator, want in known.items():
        made = Oracle(LIMIT).matrix(operator)
        assert relative(made.matmat(np.eye(want.shape[1])), want) < 1e-15
        assert relative(made.rmatmat(np.eye(want.shape[0])), want.T) < 1e-15
    space = lg.Space.of({"a": np.zeros(1), "b": np.zeros(2), "c": np.zeros(1)})
    swap, double = lg.Dense(np.array([[0.0, 1.0], [1.0, 0.0]])), lg.Diagonal(np.array([2.0, 3.0]))
    shared = lg.BlockDiagonal((swap, double), space, leaves=((0, 2), (1,)))
    want = np.array([[0, 0, 0, 1.0], [0, 2, 0, 0], [0, 0, 3, 0], [1, 0, 0, 0]])
    assert relative(Oracle(LIMIT).matrix(shared).matmat(np.eye(4)), want) == 0


def test_what_a_function_ought_to_be_is_not_known(numpy_backend):
    operator = lg.FunctionOperator(lambda v: v, lg.Space.flat(2, np.zeros(2)))
    with pytest.raises(NotApplicableError, match="FunctionOperator"):
        Oracle(LIMIT).matrix(lg.Damped(operator, 1.0))


def test_the_block_oracle_is_the_matrix_with_zeros(torch):
    case = Case("mlp", "softmax", "mean", 1)
    fit, params = objective(case, lg.load("torch")), put(lg.load("torch"), case.params())
    B = lg.BlockGGN(fit, params, blocks={"weights": "*.weight", "biases": "*.bias"})
    numbers = np.zeros(B.domain.size)
    for leaf, where in B.domain.slices.items():
        numbers[where] = leaf.endswith("bias")
    want = dense(case).G * np.equal.outer(numbers, numbers)
    assert relative(Oracle(LIMIT).matrix(B).matmat(np.eye(B.domain.size)), want) < 1e-13


# differences

SMOOTH = {
    "exponential": (lambda t: np.exp(2 * t), 2.0),
    "rational": (lambda t: (1 + t) / (1 + t * t + 3 * t), -2.0),
    "oscillating": (lambda t: np.sin(30 * t), 30.0),
    "cubic": (lambda t: 1e-6 * t + t**3, 1e-6),
    "far from zero": (lambda t: 1e6 + np.sin(t), 1.0),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_are_as_good_as_they_say(name):
    function, slope = SMOOTH[name]
    made = derivative(lambda t: np.array([function(t), 2 * function(t)]))
    error = abs(made.value[0] - slope) / abs(slope)
    assert error <= 10 * made.relative
    assert made.relative < (1e-7 if name in ("cubic", "far from zero") else 1e-10)


@settings(max_examples=25)
@given(kinks=st.integers(1, 300), seed=st.integers(0, 999))
def test_jumps_within_a_step_are_noticed(kinks, seed):
    """A gradient with jumps, as behind ReLUs: its derivative where it is, not the slope of its steps."""
    rng = np.random.default_rng(seed)
    places, sizes = rng.uniform(-0.2, 0.2, kinks), rng.standard_normal(kinks)

    def jumping(t):
        return np.array([np.sin(t) + np.sum(sizes * (t > places)) / kinks, np.cos(t) + t])

    made = derivative(jumping)
    assert np.linalg.norm(made.value - [1.0, 1.0]) <= 10 * made.uncertainty
    if abs(places).min() > 1e-5:
        assert made.relative < 1e-8


def test_noise_is_no_derivative():
    rng = np.random.default_rng(0)
    assert derivative(lambda t: rng.standard_normal(3)).relative > 0.1


def test_constants_have_a_derivative_of_zero():
    made = along(lambda x: np.ones(2), np.ones(3), np.ones(3), 2.0**-52)
    assert not made.value.any()
    assert derivative(lambda t: np.zeros(2)).relative == 0.0


# measures


def test_a_wrong_leaf_is_not_hidden_by_one_with_more_curvature():
    want = np.diag([1e3, 1e3, 1.0, 1.0])
    got = want.copy()
    got[3, 3] = 1.01
    groups = [np.array([0, 1]), np.array([2, 3])]
    error, worst = leafwise(got, want, groups)
    assert worst == 1
    assert error > 50 * relative(got, want)
    assert leafwise(want, want, groups)[0] == 0.0
    got[0, 0] = np.nan
    assert np.isnan(leafwise(got, want, groups)[0])


@settings(max_examples=25)
@given(seed=st.integers(0, 999), scale=st.integers(-20, 20))
def test_ritz_values_lie_within_the_spectrum_and_reach_its_ends(seed, scale):
    rng = np.random.default_rng(seed)
    values = 10.0**scale * np.sort(np.concatenate([rng.uniform(0, 1, 60), [-0.5, 3.0]]))
    Q = np.linalg.qr(rng.standard_normal((62, 62)))[0]
    found = lanczos(lambda v: Q @ (values * (Q.T @ v)), rng.standard_normal(62), 24)
    assert found[0] == pytest.approx(values[0], rel=1e-2)
    assert found[-1] == pytest.approx(values[-1], rel=1e-6)
    assert (found >= values[0] - 1e-12 * abs(values).max()).all()
    assert len(lanczos(lambda v: 2.0 * v, np.ones(5), 24)) == 1
