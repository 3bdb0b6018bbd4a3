"""The empirical Fisher operator against sums over single gradients, on every framework."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn import draws
from linop_gn.testing.losses import expected

from .cases import TOLERANCE, Case, Streamed, cases, full_weights, host, objective, put
from .networks import close, flat, jacobian, like

HOLDERS = st.sampled_from([list, tuple, Streamed])


def fisher(case):
    """sum_i w_i g_i g_i^T, divided once, and the gradients' size."""
    params = like(case.params(), flat(case.params()).astype(np.float64))
    made, weight = 0.0, 0.0
    for batch in case.batches():
        z = np.asarray(case.net.model(params, batch.inputs))
        w = full_weights(case, batch, z)
        y = np.where(batch.targets == -100, 0, batch.targets) if case.ignore else batch.targets
        slopes = expected(case.loss, z, y, np.ones(w.shape)).gradient.reshape(w.size, -1)
        rows = jacobian(case.net.model, params, batch.inputs).reshape(*slopes.shape, -1)
        each = np.einsum("ec,ecn->en", slopes, rows)
        made = made + np.einsum("e,en,em->nm", w.reshape(-1), each, each)
        weight += float(w.sum())
    return made / weight if case.reduction == "mean" else made


def check(case, backend, hold=list, dtype="float64"):
    F = lg.EmpiricalFisher(objective(case, backend, dtype, hold), put(backend, case.params(), dtype))
    want, n = fisher(case), flat(case.params()).size
    assert (F.shape, F.symmetric, F.psd) == ((n, n), True, True)
    v = np.random.default_rng(case.seed).standard_normal((n, 2))
    size = float((np.sqrt(np.outer(want.diagonal(), want.diagonal())) @ abs(v)).max())
    close(backend.to_numpy(F @ put(backend, v, dtype)), want @ v, 10 * TOLERANCE[dtype], size)


@given(cases(), HOLDERS, st.sampled_from(["float64", "float32"]))
def test_products_are_sums_over_gradients(numpy_backend, case, hold, dtype):
    check(case, numpy_backend, hold, dtype)


@settings(max_examples=8)
@given(cases(), HOLDERS)
def test_products_on_spoiled_arrays_and_in_torch(backend, case, hold):
    if "compiled" not in backend.capabilities:
        check(case, backend, hold)


@pytest.mark.parametrize("case", [Case("mlp", "softmax", "mean", 0, "weights", (2, 3))], ids=lambda case: case.loss)
def test_products_in_jax(jax, case):
    check(case, lg.load("jax"))


def test_value_and_gradient_are_the_losses_own(numpy_backend):
    case = Case("mlp", "softmax", "mean", 3, "weights")
    f, p = objective(case, numpy_backend), case.params()
    F = lg.EmpiricalFisher(f, p)
    np.testing.assert_allclose(F.point.value, f.value(p))
    np.testing.assert_allclose(F.point.gradient, host(numpy_backend, f.gradient(p)))


def test_class_weights_weigh_examples(numpy_backend):
    """The gradient of an example does not grow with its class's weight; the example counts as often."""
    rng = np.random.default_rng(0)
    x, w, y = rng.standard_normal((6, 3)), rng.standard_normal((3, 4)), np.array([0, 1, 2, 3, 1, 1])
    c = np.array([0.5, 2.0, 0.0, 1.0])
    jacobian = lambda p, x: np.einsum("ni,jk->njik", x, np.eye(4))  # noqa: E731
    weighted = lg.Objective(lambda p, x: x @ p, lg.losses.CrossEntropy(weight=c), (x, y), jacobian=jacobian)
    repeated = lg.Objective(lambda p, x: x @ p, lg.losses.CrossEntropy(), (x, y, c[y]), jacobian=jacobian)
    found, wanted = (lg.EmpiricalFisher(f, w).to_dense() for f in (weighted, repeated))
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)


def test_of_a_sequence_each_position_is_an_example_unless_the_loss_says_otherwise(numpy_backend):
    x = np.random.default_rng(1).standard_normal((5, 3, 2))
    y = (x.sum(-1) > 0).astype(float)
    jacobian = lambda p, x: x  # noqa: E731

    @lg.record
    class OfAnImage(lg.losses.BinaryCrossEntropy):
        example_axes = 1

    p = np.array([0.3, -0.2])
    slopes = (1 / (1 + np.exp(-x @ p)) - y)[..., None] * x
    for loss, rows, count in (
        (lg.losses.BinaryCrossEntropy(), slopes.reshape(15, 2), 15),
        (OfAnImage(), slopes.sum(axis=1), 5),
    ):
        F = lg.EmpiricalFisher(lg.Objective(lambda p, x: x @ p, loss, (x, y), jacobian=jacobian), p)
        np.testing.assert_allclose(F.to_dense(), rows.T @ rows / count, rtol=1e-12)


@pytest.mark.parametrize("loss", ["softmax", "squared", "binary"])
def test_on_the_side_of_the_outputs_it_is_the_same(numpy_backend, loss):
    case = Case("mlp", loss, "mean", 2, "weights")
    F = lg.EmpiricalFisher(objective(case, numpy_backend), case.params())
    b = np.random.default_rng(0).standard_normal(F.shape[0])
    x = lg.solve(lg.Damped(F, 0.1), b, lg.GramSolve()).x
    np.testing.assert_allclose(fisher(case) @ x + 0.1 * x, b, atol=1e-8)


def test_l2_is_added_and_losses_without_slopes_are_told():
    x, y = np.eye(3), np.arange(3.0)
    fit = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, y), jacobian=lambda w, x: x, l2=2.0)
    np.testing.assert_allclose(lg.EmpiricalFisher(fit, np.zeros(3)).to_dense(), np.diag(y**2) / 3 + 2 * np.eye(3))
    plain = lg.Objective(lambda w, x: x @ w, lambda z, y: (z - y) ** 2, (x, y), jacobian=lambda w, x: x)
    with pytest.raises(TypeError, match="value, slope and curvature"):
        lg.EmpiricalFisher(plain, np.zeros(3))
    scalar = lg.Objective.from_function(lambda p: p @ p, gradient=lambda p: 2 * p)
    with pytest.raises(ValueError, match="plain scalar function"):
        lg.EmpiricalFisher(scalar, np.zeros(3))


# as a matrix of low rank


def check_low_rank(make, case, backend, dtype="float64"):
    F = make(objective(case, backend, dtype), put(backend, case.params(), dtype))
    made = F.low_rank()
    U, M = (backend.to_numpy(x).astype(float) for x in (made.factor, made.middle))
    want = backend.to_numpy(F.to_dense())
    assert (made.shape, made.psd, made.domain.agrees(F.domain)) == (F.shape, True, True)
    np.testing.assert_allclose((U * M) @ U.T, want, atol=50 * TOLERANCE[dtype] * (1 + abs(want).max()))
    return made


@given(cases(), st.sampled_from(["float64", "float32"]))
def test_low_rank_is_the_same_operator(numpy_backend, case, dtype):
    m = sum(full_weights(case, b, np.asarray(case.net.model(case.params(), b.inputs))).size for b in case.batches())
    assert check_low_rank(lg.EmpiricalFisher, case, numpy_backend, dtype).factor.shape[1] == m


def test_low_rank_on_every_framework(backend):
    """Equal batches are stacked in a compiled program, and others stand beside them."""
    if backend.calculus is None and backend.name != "numpy":
        pytest.skip("it has no derivatives")
    case = Case("mlp", "softmax", "mean", 1, "weights", (2, 2, 1))
    made = check_low_rank(lambda *at: lg.Fisher(*at, samples=2), case, backend)
    assert made.factor.shape[1] == 10


def test_low_rank_over_the_bridge(numpy_backend, torch):
    case = Case("mlp", "softmax", "mean", 1, "mask", (2, 3))
    F = lg.EmpiricalFisher(objective(case, numpy_backend, derivatives="torch"), case.params())
    np.testing.assert_allclose(F.low_rank().to_dense(), fisher(case), atol=1e-12)


def test_low_rank_has_the_gradients_themselves_and_solves(numpy_backend):
    """The weights stand in the middle, an l2 and a damping around it; without a weight a gradient is zero."""
    rng = np.random.default_rng(0)
    x, y, w = rng.standard_normal((6, 40)), rng.standard_normal(6), np.array([1.0, 2.0, 0.0, 1.0, 3.0, 1.0])
    y[2] = np.nan
    fit = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), (x, y, w), jacobian=lambda p, x: x, l2=0.5)
    p = rng.standard_normal(40)
    F = lg.EmpiricalFisher(fit, p)
    made = F.low_rank()
    gradients = np.where(w > 0, x.T * (x @ p - y), 0.0)
    np.testing.assert_allclose(made.operator.factor, gradients, rtol=1e-12)
    np.testing.assert_allclose(made.operator.middle, w / 8)
    np.testing.assert_allclose(made.to_dense(), F.to_dense(), rtol=1e-12)
    solution = lg.solve(lg.Damped(made, 0.1), p, lg.CG(rtol=1e-10))
    assert solution.succeeded
    assert solution.steps <= 10  # the rank is 5
    np.testing.assert_allclose(F @ solution.x + 0.1 * solution.x, p, atol=1e-8)
    inverse = lg.preconditioners.Nystrom(rank=6)(lg.Damped(made, 0.1))
    np.testing.assert_allclose(inverse @ p, solution.x, atol=1e-8)


def test_low_rank_of_each_l2_and_of_streams():
    x, y, l2 = np.eye(3), np.arange(3.0), np.array([1.0, 2.0, 0.0])
    make = lambda data: lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), data, jacobian=lambda w, x: x, l2=l2)  # noqa: E731
    F = lg.EmpiricalFisher(make((x, y)), np.zeros(3))
    np.testing.assert_allclose(F.low_rank().to_dense(), F.to_dense())
    with pytest.raises(ValueError, match="hold them in a list"):
        lg.EmpiricalFisher(make(Streamed([(x, y)])), np.zeros(3)).low_rank()


# drawn targets

LIKELY = ("softmax", "softmax smoothed", "squared", "binary", "poisson")


@pytest.mark.parametrize("loss", LIKELY)
def test_the_mean_over_draws_is_the_gauss_newton_operator(numpy_backend, loss):
    case = Case("mlp", loss, "mean", 1, "mask", (3, 2))
    f, p = objective(case, numpy_backend), case.params()
    G = lg.GGN(f, p).to_dense()
    few, many = (
        np.mean([abs(lg.Fisher(f, p, samples=n, seed=i).to_dense() - G).max() for i in range(3)]) for n in (2, 128)
    )
    assert many < 0.35 * abs(G).max()
    assert 3 < few / many < 22  # the root of 64


RATES = (1e-3, 0.01, 0.3, 1.0, 4.0, 11.9, 12.1, 30.0, 200.0, 1e4, 1e8)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rate", RATES)
def test_counts_are_poissons(dtype, rate):
    """Mean and variance are the rate, which is all that the operator asks; counts are spread as Poisson's."""
    xp, n = lg.namespace(np.zeros(1)), 200_000
    z = np.full(n, np.log(rate), dtype)
    u = [draws.uniform(xp, np.arange(n, dtype=np.int32), 3, k, z.dtype) for k in (0, 1)]
    slopes = lg.losses.Poisson().drawn_slope(xp, z, u.__getitem__)
    assert slopes.dtype == dtype
    r = float(np.exp(z[0].astype(float)))
    s = slopes.astype(float)
    assert abs(s.mean()) < 4 * (r / n) ** 0.5
    assert abs((s * s).mean() / r - 1) < 4 * ((1 / r + 2) / n) ** 0.5
    if rate > 1e3:
        return
    counts = np.rint(r - s).astype(int)
    assert counts.min() >= 0
    np.testing.assert_allclose(r - s, counts, atol=1e-5 * (1 + r))
    k = np.arange(counts.max() + 2)
    expected = n * np.exp(k * np.log(r) - r - np.array([math.lgamma(i + 1.0) for i in k]))
    seen, often = np.bincount(counts, minlength=len(k)), expected > 5
    off = ((seen - expected)[often] ** 2 / expected[often]).sum()
    assert off < often.sum() + 4 * (2 * often.sum()) ** 0.5


def test_counts_are_the_same_on_every_framework(backend):
    z, u = np.linspace(-4.0, 8.0, 50), np.random.default_rng(0).uniform(size=(2, 50))
    here = lg.losses.Poisson().drawn_slope(lg.namespace(z), z, lambda k: u[k])
    there = lg.losses.Poisson().drawn_slope(
        backend.namespace(), put(backend, z, "float64"), lambda k: put(backend, u[k], "float64")
    )
    np.testing.assert_allclose(backend.to_numpy(there), here, rtol=1e-9, atol=1e-9)


def test_counts_of_any_log_rate_are_finite():
    """A rate that is zero has a slope of zero; what overflows does so as the curvature does."""
    xp, z = lg.namespace(np.zeros(1)), np.array([-1e4, -200.0, 80.0, 88.0], np.float32)
    s = lg.losses.Poisson().drawn_slope(xp, z, lambda k: np.full(4, 0.3, np.float32))
    assert np.isfinite(s).all()
    assert (s[:2] == 0).all()


def test_class_weights_are_exact_in_expectation():
    rng = np.random.default_rng(0)
    x, w, y = rng.standard_normal((6, 3)), rng.standard_normal((3, 4)), np.array([0, 1, 2, 3, 1, 1])
    loss = lg.losses.CrossEntropy(weight=np.array([0.5, 2.0, 0.0, 1.0]))
    jacobian = lambda p, x: np.einsum("ni,jk->njik", x, np.eye(4))  # noqa: E731
    f = lg.Objective(lambda p, x: x @ p, loss, (x, y), jacobian=jacobian)
    G, F = lg.GGN(f, w).to_dense(), lg.Fisher(f, w, samples=1000).to_dense()
    assert abs(F - G).max() < 0.15 * abs(G).max()


def test_draws_are_one_operator_on_every_backend_and_layout(backend):
    """The same targets wherever the numbers are made; batches in a list or from a stream alike."""
    if backend.calculus is None and backend.name != "numpy":
        pytest.skip("it has no derivatives")
    case = Case("mlp", "softmax", "mean", 4, "none", (3, 3))
    here = lg.Fisher(objective(case, lg.load("numpy")), case.params(), seed=5).to_dense()
    there = lg.Fisher(objective(case, backend), put(backend, case.params()), seed=5)
    np.testing.assert_allclose(backend.to_numpy(there.to_dense()), here, atol=1e-10)
    if "compiled" not in backend.capabilities:
        F = lg.Fisher(objective(case, backend, hold=Streamed), put(backend, case.params()), seed=5)
        v = np.arange(float(len(here)))
        for _ in range(2):
            np.testing.assert_allclose(backend.to_numpy(F @ put(backend, v)), here @ v, atol=1e-9)
    other = lg.Fisher(objective(case, backend), put(backend, case.params()), seed=6)
    assert abs(backend.to_numpy(other @ put(backend, np.ones(len(here)))) - here @ np.ones(len(here))).max() > 1e-6


def test_batches_have_draws_of_their_own(numpy_backend):
    """Twice the same batch is not twice the same draw."""
    x = np.random.default_rng(0).standard_normal((40, 2))
    y = np.zeros(40)
    make = lambda data: lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), data, jacobian=lambda w, x: x)  # noqa: E731
    once, twice = (lg.Fisher(make(data), np.zeros(2)).to_dense() for data in ((x, y), [(x, y), (x, y)]))
    assert abs(once - twice).max() > 1e-3


@pytest.mark.parametrize("loss", [lg.losses.CrossEntropy(), lg.losses.BinaryCrossEntropy()], ids=lambda loss: loss.name)
def test_draws_are_the_same_whatever_the_microbatch(backend, loss):
    """Of two batches with ragged ends, in memory and streamed: as of the batches whole."""
    if backend.calculus is None:
        pytest.skip("it has no derivatives")
    rng, xp = np.random.default_rng(0), backend.namespace()
    data, w, v = [], *(put(backend, rng.standard_normal((2, 3))) for _ in range(2))
    for rows in (5, 3):
        y = rng.integers(0, 2, (rows, 2)) if loss.example_axes == -1 else rng.integers(0, 2, (rows, 2, 3)) * 1.0
        data.append((put(backend, rng.standard_normal((rows, 2, 2))), put(backend, y)))

    def product(data, **options):
        fit = lg.Objective(lambda w, x: xp.tanh(xp.matmul(x, w)), loss, data, **options)
        return backend.to_numpy(lg.Fisher(fit, w, samples=2, seed=3) @ v)

    whole = product(data)
    np.testing.assert_allclose(product(data, microbatch=2), whole, rtol=1e-9)
    if "compiled" not in backend.capabilities:
        for options in ({"microbatch": 3, "memory": "low"}, {"microbatch": 5}):
            np.testing.assert_allclose(product(data, **options), whole, rtol=1e-9)
        np.testing.assert_allclose(product(Streamed(data), microbatch=2), whole, rtol=1e-9)


class Shuffled(Streamed):
    def __iter__(self):
        self.turn = not getattr(self, "turn", False)
        return iter(self.batches if self.turn else self.batches[::-1])


def test_a_stream_in_another_order_is_told():
    rng = np.random.default_rng(0)
    data = [(rng.standard_normal((3, 2)), rng.standard_normal(3)) for _ in range(2)]
    f = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), Shuffled(data), jacobian=lambda w, x: x)
    F = lg.Fisher(f, np.zeros(2))
    passes = [lambda: F @ np.ones(2)] * 3
    with pytest.raises(ValueError, match="shuffle=False"):
        [ask() for ask in passes]


def test_of_a_single_sample_there_is_a_root(numpy_backend):
    case = Case("mlp", "softmax", "mean", 2)
    f, p = objective(case, numpy_backend), case.params()
    F = lg.Fisher(f, p)
    b = np.random.default_rng(0).standard_normal(F.shape[0])
    x = lg.solve(lg.Damped(F, 0.1), b, lg.GramSolve()).x
    np.testing.assert_allclose(F.to_dense() @ x + 0.1 * x, b, atol=1e-8)
    with pytest.raises(NotImplementedError, match="samples=1"):
        lg.solve(lg.Damped(lg.Fisher(f, p, samples=2), 0.1), b, lg.GramSolve())


def test_losses_that_are_no_likelihood_are_told():
    x = np.eye(3)
    f = lg.Objective(lambda w, x: x @ w, lg.losses.Huber(), (x, np.ones(3)), jacobian=lambda w, x: x)
    with pytest.raises(NotImplementedError, match="drawn_slope"):
        lg.Fisher(f, np.zeros(3))
    f = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, np.ones(3)), jacobian=lambda w, x: x)
    with pytest.raises(ValueError, match="samples"):
        lg.Fisher(f, np.zeros(3), samples=0)


@pytest.mark.parametrize("make", [lg.EmpiricalFisher, lg.Fisher])
def test_they_are_held_to_their_own_matrices(torch, make):
    case = Case("mlp", "softmax", "mean", 3, "weights", (3, 2))
    F = make(objective(case, lg.load("torch")), put(lg.load("torch"), case.params()))
    report = lg.validate(F)
    assert {check.name: check.status for check in report.checks}["dense"] == "passed"
    assert report.passed
