"""``lg.validate`` passes what is right: on every framework, in both precisions, whatever the data and the losses."""

import importlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import FULL, in_full

import linop_gn as lg
from linop_gn.testing import device_of
from linop_gn.testing.strategies import KINDS, symmetric_matrices
from tests.curvature.cases import Case, Streamed, cases, objective, put

IN_CI_ON_JAX = ("test_every_curvature_operator_passes",)

CURVATURE = ("dense", "differences", "gradient")
PRECISIONS = ("float64", "float32")


def made(case, backend, dtype, hold=list):
    return objective(case, backend, dtype, hold), put(backend, case.params(), dtype)


def assert_right(operator, skipped=(), **options):
    """Everything passed but what there is nothing to check of, and the oracle was really asked."""
    report = lg.validate(operator, **options).raise_if_failed()
    fixed = set() if "in_place" in operator.backend.capabilities else {"aliasing"}
    claims = set() if operator.psd else {"psd"} if operator.symmetric else {"psd", "symmetry"}
    assert set(report.skipped) - fixed - claims == set(skipped)
    assert all(report[name].passed for name in CURVATURE if name not in skipped)
    return report


MLP = Case("mlp", "softmax", "mean", 3, "weights")


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_every_curvature_operator_passes(request, name, dtype):
    if name != "numpy":
        request.getfixturevalue(name)
    fit, params = made(MLP, lg.load(name), dtype)
    J, L = lg.Jacobian(fit, params), lg.LossHessian(fit, params)
    G, B = lg.GGN(fit, params), lg.BlockGGN(fit, params)
    if name == "jax":  # whose programs take seconds each to compile; the others are below, and made of the same code
        operators = [B, J] if dtype == "float64" else [G]
    else:
        operators = [G, B, J, L, lg.BlockGGN(fit, params, blocks="leaf"), lg.Damped(G, 0.1)]
        operators += [0.5 * G + J.T @ L @ J, J.T, J @ J.T]
    if name == "torch":
        operators.append(lg.Hessian(fit, params))
    for operator in operators:
        report = assert_right(operator, skipped=["batches"])
        exact = name != "numpy" and dtype == "float64"
        assert report["dense"].tolerance <= (1e-12 if exact else 1.1e-4 if dtype == "float32" else 1.1e-8)
        assert report["dense"].error <= (1e-13 if exact else 1e-5 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", ["numpy", "torch"])
@settings(max_examples=12 if FULL else 3)
@given(data=st.data())
def test_drawn_objectives_pass(request, name, dtype, data):
    if name != "numpy":
        request.getfixturevalue(name)
    case = data.draw(cases())
    holds = [list, Streamed] if name == "torch" else [list]  # with a Jacobian by complex step in each product: too slow
    fit, params = made(case, lg.load(name), dtype, data.draw(st.sampled_from(holds)))
    kinds = [lg.GGN, lg.BlockGGN] + ([lg.Hessian] if name != "numpy" else [])
    report = lg.validate(data.draw(st.sampled_from(kinds))(fit, params)).raise_if_failed()
    assert report["dense"].passed
    assert report["gradient"].passed
    streamed = fit.stream is not None
    assert report["batches"].skipped == (len(case.sizes) == 1 and not streamed)


@in_full
@pytest.mark.parametrize(("hold", "kind"), [(list, lg.GGN), (Streamed, lg.Hessian)])
def test_batches_in_jax_pass(jax, hold, kind):
    case = Case("mlp", "softmax", "mean", 1, "weights", sizes=(2, 2, 1))
    fit, params = made(case, lg.load("jax"), "float64", hold)
    assert_right(kind(fit, params))


def test_streams_of_numpy_arrays_pass(numpy_backend):
    case = Case("mlp", "binary", "mean", 1, sizes=(2, 1))
    fit, params = made(case, numpy_backend, "float64", Streamed)
    assert_right(lg.BlockGGN(fit, params))


def test_jax_without_64_bits_is_compared_in_64(jax):
    program = """
        import jax, jax.numpy as jnp, numpy as np, linop_gn as lg
        rng = np.random.default_rng(0)
        params = {"w": jnp.asarray(rng.standard_normal((3, 2)), jnp.float32)}
        data = jnp.asarray(rng.standard_normal((5, 3)), jnp.float32), jnp.asarray([0, 1, 1, 0, 1])
        fit = lg.Objective(lambda p, x: jnp.tanh(x @ p["w"]), lg.losses.CrossEntropy(), data)
        report = lg.validate(lg.Hessian(fit, params)).raise_if_failed()
        assert not jax.config.jax_enable_x64 and "float32" not in report["dense"].reason, report
        assert 1e-10 < report["dense"].error < 1e-5, report
        assert (lg.GGN(fit, params) @ params)["w"].dtype == jnp.float32
        print("passed")
    """
    environment = {**importlib.import_module("os").environ, "JAX_ENABLE_X64": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "passed", done.stderr[-2000:]


# matrices and functions


@settings(max_examples=20)
@given(drawn=symmetric_matrices(7), dtype=st.sampled_from(PRECISIONS))
def test_psd_passes_for_exactly_those_that_are(numpy_backend, drawn, dtype):
    matrix = put(numpy_backend, drawn.matrix, dtype)
    report = lg.validate(lg.Dense(matrix, psd=True))
    assert report.failed == (("psd",) if drawn.kind == "indefinite" else ())


@pytest.mark.parametrize("kind", KINDS)
def test_psd_of_large_operators_is_told_by_lanczos(numpy_backend, kind):
    values = np.linspace(0.5, 2.0, 700)
    if kind == "indefinite":
        values[::50] *= -1
    elif kind == "psd":
        values[::3] = 0
    space = lg.Space.flat(700, values)
    report = lg.validate(lg.FunctionOperator(lambda v: values * v, space, psd=True))
    assert "Lanczos" in report["psd"].reason
    assert report.failed == (("psd",) if kind == "indefinite" else ())


def test_algebra_passes_on_every_backend(backend):
    device = device_of(backend)
    rng = np.random.default_rng(0)
    host = rng.standard_normal((4, 3))
    A = lg.Dense(backend.asarray(host, "float64", device))
    B = lg.Diagonal(backend.asarray(rng.random(4), "float64", device))
    for operator in (A, A.T, A.T @ B @ A, 2.0 * B, lg.Damped(A.T @ A, 0.5), B + lg.Identity(B.domain)):
        report = lg.validate(operator).raise_if_failed()
        assert {report[name].reason for name in (*CURVATURE, "batches")} == {"not a curvature operator"}


def test_operators_on_trees_pass(backend):
    device = device_of(backend)
    tree = {
        "a": backend.asarray(np.ones((2, 2)), "float64", device),
        "b": backend.asarray(np.ones(3), "float64", device),
    }
    space = lg.Space.of(tree)
    twice = lg.FunctionOperator(lambda v: {"a": 2 * v["a"], "b": 3 * v["b"]}, space, psd=True, on="tree")
    assert lg.validate(twice).raise_if_failed()["formats"].passed


def test_a_column_of_parameters_is_no_column(torch):
    """Vectors (n, 1) that are the user's tree."""
    params = torch.randn(4, 1, dtype=torch.float64)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    assert_right(
        lg.GGN(lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, y)), params), skipped=["batches"]
    )


# objectives of other forms


def test_scalar_functions_pass(torch, numpy_backend):
    rosenbrock = lg.Objective.from_function(lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2)
    assert_right(lg.Hessian(rosenbrock, torch.tensor([0.3, -0.2], dtype=torch.float64)), skipped=["batches"])
    quartic = lg.Objective.from_function(
        lambda p: p @ p * (p @ p) / 4,
        gradient=lambda p: (p @ p) * p,
        hvp=lambda p, v: (p @ p) * v + 2 * (p @ v) * p,
    )
    assert_right(lg.Hessian(quartic, np.array([1.0, 2.0, -1.0])), skipped=["batches"])


def test_residuals_pass(torch):
    t = torch.linspace(0, 3, 9, dtype=torch.float64)
    decay = lg.Objective.from_residuals(lambda p: p["size"] * torch.exp(-p["rate"] * t) - 1 / (1 + t))
    params = {"rate": torch.tensor(0.7, dtype=torch.float64), "size": torch.tensor(2.0, dtype=torch.float64)}
    for kind in (lg.GGN, lg.Hessian):
        assert_right(kind(decay, params), skipped=["batches"])


def test_losses_of_the_users_own_pass(torch):
    huber = lg.losses.FromFunction(lambda z, y: torch.sqrt(1 + (z - y) ** 2).sum(-1) - 1, convex=True)
    fit, params = made(Case("mlp", "squared", "mean", 0), lg.load("torch"), "float64")
    for kind in (lg.GGN, lg.Hessian, lg.LossHessian):
        assert_right(kind(lg.Objective(fit.model, huber, fit.batches), params), skipped=["batches"])


def test_robust_losses_pass_where_their_curvature_is_no_second_derivative(numpy_backend):
    x, y = np.random.default_rng(0).standard_normal((2, 20, 1))
    outliers = lg.Objective(lambda w, x: x @ w, lg.losses.Cauchy(width=0.5), (x, 5 * y[:, 0]), jacobian=lambda w, x: x)
    assert_right(lg.GGN(outliers, np.ones(1)), skipped=["batches"])


# torch modules


def network(torch, dtype, *layers):
    torch.manual_seed(0)
    return torch.nn.Sequential(*layers).to(getattr(torch, dtype))


def data(torch, dtype, count=8):
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.standard_normal((count, 6)), dtype=getattr(torch, dtype))
    return x, torch.as_tensor(rng.integers(0, 3, count))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_modules_pass(torch, dtype):
    nn = torch.nn
    tied = nn.Linear(6, 6)
    nets = {
        "layer norm": [nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)],
        "batch norm": [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)],
        "weight norm": [nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)],
        "convolution": [nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)],
        "dropout": [nn.Linear(6, 5), nn.Dropout(0.4), nn.Tanh(), nn.Linear(5, 3)],
        "tied": [tied, nn.Tanh(), tied, nn.Linear(6, 3)],
    }
    for layers in nets.values():
        net = network(torch, dtype, *layers)
        fit = lg.Objective(net, lg.losses.CrossEntropy(), data(torch, dtype))
        for kind in (lg.GGN, lg.Hessian):
            report = assert_right(kind(fit, net), skipped=["batches"])
            assert "oracle in" not in report["dense"].reason


def test_units_that_switch_within_any_large_step_pass(torch):
    """A gradient that jumps: large steps of differences see its jumps, small ones don't."""
    nn = torch.nn
    net = network(torch, "float64", nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    fit = lg.Objective(net, lg.losses.CrossEntropy(), data(torch, "float64", 200))
    assert_right(lg.Hessian(fit, net), skipped=["batches"], dense_limit=0)


def test_a_function_that_cannot_be_cast_is_compared_in_its_own_precision(torch):
    matrix = torch.randn(6, 3)  # float32 whatever the inputs are
    fit = lg.Objective(lambda p, x: torch.tanh(x * p) @ matrix, lg.losses.CrossEntropy(), data(torch, "float32"))
    report = assert_right(lg.Hessian(fit, torch.randn(6)), skipped=["batches"])
    assert "oracle in float32: the model does not run in float64" in report["dense"].reason


def test_a_module_that_draws_otherwise_in_float64_is_compared_in_its_own_precision(torch):
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(6, 3)

        def forward(self, x):
            return self.linear(x + torch.randn_like(x))

    fit = lg.Objective(Noisy(), lg.losses.CrossEntropy(), data(torch, "float32"))
    report = assert_right(lg.GGN(fit, fit.model), skipped=["batches"])
    assert "another function in float64" in report["dense"].reason


def test_half_precision_passes_at_its_tolerance(torch):
    net = network(torch, "bfloat16", torch.nn.Linear(6, 3))
    x, y = data(torch, "float32")
    report = lg.validate(lg.GGN(lg.Objective(net, lg.losses.CrossEntropy(), (x.bfloat16(), y)), net)).raise_if_failed()
    assert report["dense"].passed
    assert report["linearity"].tolerance == 0.1


def test_leaves_of_two_precisions_are_judged_by_the_narrower(torch):
    params = {"a": torch.randn(6, 4), "b": torch.randn(4, 3, dtype=torch.float64)}
    fit = lg.Objective(
        lambda p, x: torch.tanh(x @ p["a"]).double() @ p["b"], lg.losses.CrossEntropy(), data(torch, "float32")
    )
    assert lg.validate(lg.GGN(fit, params)).raise_if_failed()["linearity"].tolerance == 1e-5


# sizes, options


@pytest.mark.parametrize("kind", [lg.GGN, lg.BlockGGN, lg.Hessian, lg.Jacobian])
def test_large_operators_are_compared_in_columns(torch, kind):
    case = Case("transformer", "softmax", "mean", 5, sizes=(4,))
    fit, params = made(case, lg.load("torch"), "float64")
    report = assert_right(kind(fit, params), skipped=["batches"], dense_limit=0)
    assert "columns of" in report["dense"].reason
    assert report["dense"].error < 1e-9


def test_large_numpy_operators_keep_their_differences(numpy_backend):
    fit, params = made(MLP, numpy_backend, "float64")
    report = lg.validate(lg.GGN(fit, params), dense_limit=10).raise_if_failed()
    assert "dense_limit" in report["dense"].reason
    assert report["differences"].passed


def test_the_seed_decides_all_that_is_random(numpy_backend):
    fit, params = made(MLP, numpy_backend, "float64")
    one, same, other = (lg.validate(lg.GGN(fit, params), seed=seed) for seed in (1, 1, 2))
    assert [c.error for c in one] == [c.error for c in same] != [c.error for c in other]


def test_the_tolerance_is_the_users(numpy_backend):
    report = lg.validate(lg.Dense(np.random.default_rng(0).standard_normal((5, 5))), tolerance=1e-30)
    assert "linearity" in report.failed
    assert report["linearity"].tolerance == 1e-30


def test_one_probe_is_enough(numpy_backend):
    fit, params = made(MLP, numpy_backend, "float64")
    assert_right(lg.GGN(fit, params), skipped=["batches"], probes=1)


# what cannot be compared with the union


def test_batch_statistics_have_no_union(torch):
    net = network(torch, "float64", torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
    x, y = data(torch, "float64")
    fit = lg.Objective(net, lg.losses.CrossEntropy(), [(x[:3], y[:3]), (x[3:], y[3:])])
    report = assert_right(lg.GGN(fit, net), skipped=["batches"])
    assert "batch statistics" in report["batches"].reason


def test_inputs_of_several_shapes_have_no_union(torch):
    params = torch.randn(3, dtype=torch.float64)
    batches = [(torch.randn(n, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)) for n in (2, 4)]
    fit = lg.Objective(lambda w, x: (x @ w).sum() * torch.ones(5).double(), lg.losses.SquaredError(), batches)
    assert "other" in assert_right(lg.GGN(fit, params), skipped=["batches"])["batches"].reason


# what is no operator to validate


def test_what_cannot_be_validated_is_refused(numpy_backend):
    A = lg.Dense(np.eye(3))
    with pytest.raises(TypeError, match="validate needs a linear operator, got ndarray"):
        lg.validate(np.eye(3))
    with pytest.raises(TypeError, match="against= needs a linear operator"):
        lg.validate(A, against=np.eye(3))
    with pytest.raises(ValueError, match="different vectors"):
        lg.validate(A, against=lg.Dense(np.eye(4)))
    with pytest.raises(ValueError, match="at least 1"):
        lg.validate(A, probes=0)


def test_missing_derivatives_are_the_users_to_see(numpy_backend):
    fit = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), (np.ones((2, 3)), np.ones(2)))
    with pytest.raises(lg.MissingDerivativeError):
        lg.validate(lg.GGN(fit, np.ones(3)))


def test_values_are_not_known_inside_jit(jax):
    def inside(matrix):
        lg.validate(lg.Dense(matrix))
        return matrix

    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(inside)(jax.numpy.eye(2))


# where rounding costs more than elsewhere


def test_ill_conditioned_products_are_given_what_their_conditioning_costs(torch):
    """Behind a layer norm of nearly equal entries float32 keeps four digits of a Hessian, float64 thirteen."""
    case = Case("transformer", "softmax of probabilities", "mean", 0)
    fit, params = made(case, lg.load("torch"), "float32")
    rough = assert_right(lg.Hessian(fit, params), skipped=["batches"])
    assert 1e-4 < rough["dense"].tolerance < 1e-2
    fit, params = made(case, lg.load("torch"), "float64")
    assert assert_right(lg.Hessian(fit, params), skipped=["batches"])["dense"].error < 1e-11


def test_differences_that_cancel_know_it(numpy_backend):
    """One parameter, and classes that are certain: H_L sends J v to almost nothing, and errors of J with it."""
    for seed in (8, 14):
        fit, params = made(Case("decay", "softmax smoothed", "mean", seed, sizes=(4,)), numpy_backend, "float64")
        assert_right(lg.GGN(fit, params), skipped=["batches"])
