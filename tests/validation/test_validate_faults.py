"""``lg.validate`` finds planted faults, and names the right one."""

import copy
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.curvature import point as points
from linop_gn.testing import device_of
from tests.curvature.cases import Case, Streamed, objective, put

IN_CI_ON_JAX = (
    "test_a_wrong_adjoint",
    "test_symmetry_that_is_only_claimed",
    "test_definiteness_that_is_only_claimed",
    "test_what_is_not_linear",
    "test_products_that_are_not_finite",
    "test_products_that_differ",
)


def flat_space(backend, size=4, dtype="float64"):
    return lg.Space.flat(size, backend.asarray(np.zeros(size), dtype, device_of(backend)))


def constant(backend, host, dtype="float64"):
    return backend.asarray(np.asarray(host), dtype, device_of(backend))


def problem(name, case=None, dtype="float64"):
    case = case or Case("mlp", "softmax", "mean", 3)
    backend = lg.load(name)
    return objective(case, backend, dtype), put(backend, case.params(), dtype)


# algebra, on every backend


def test_a_wrong_adjoint(backend):
    A = constant(backend, np.random.default_rng(0).standard_normal((4, 4)))
    space = flat_space(backend)
    wrong = lg.FunctionOperator(lambda v, a: a @ v, space, adjoint_function=lambda u, a: a @ u, args=(A,))
    report = lg.validate(wrong)
    assert report.failed == ("adjoint",)
    assert "missing transpose" in report["adjoint"].advice
    right = lg.FunctionOperator(lambda v, a: a @ v, space, adjoint_function=lambda u, a: a.T @ u, args=(A,))
    assert lg.validate(right).passed


@settings(max_examples=20)
@given(part=st.floats(1e-4, 1.0), sign=st.sampled_from([-1, 1]), seed=st.integers(0, 99))
def test_an_adjoint_that_is_wrong_in_one_entry_of_many(numpy_backend, part, sign, seed):
    """Random probes alone would dilute this by the square root of the size."""
    values = np.random.default_rng(seed).standard_normal((300, 200))
    wrong = values.T.copy()
    wrong[7, 5] *= 1 + sign * part
    domain, codomain = lg.Space.flat(200, values), lg.Space.flat(300, values)
    operator = lg.FunctionOperator(lambda v: values @ v, domain, codomain, lambda u: wrong @ u)
    assert "adjoint" in lg.validate(operator).failed


def test_symmetry_that_is_only_claimed(backend):
    A = constant(backend, [[1.0, 2.0], [0.0, 3.0]])
    report = lg.validate(lg.FunctionOperator(lambda v, a: a @ v, flat_space(backend, 2), args=(A,), symmetric=True))
    assert report.failed == ("adjoint", "symmetry")
    assert "CG and Lanczos are wrong" in report["symmetry"].advice


def test_definiteness_that_is_only_claimed(backend):
    d = constant(backend, [1.0, 2.0, -1e-3, 1.0])
    report = lg.validate(lg.FunctionOperator(lambda v, d: d * v, flat_space(backend), args=(d,), psd=True))
    assert report.failed == ("psd",)
    assert report["psd"].error == pytest.approx(5e-4)


def test_definiteness_is_not_a_matter_of_scale(numpy_backend):
    for scale in (1e-30, 1.0, 1e30):
        for values, failed in (([1.0, -1e-6], ("psd",)), ([1.0, 0.0], ())):
            d = scale * np.array(values)
            assert (
                lg.validate(lg.FunctionOperator(lambda v, d=d: d * v, flat_space(numpy_backend, 2), psd=True)).failed
                == failed
            )


NONLINEAR = {
    "square": lambda v: v * abs(v),
    "affine": lambda v: v + 1.0,
    "clipped": lambda v: lg.namespace(v).clip(v, -1.0, 1.0),
    "normalised": lambda v: v / (v @ v) ** 0.5,
}


@pytest.mark.parametrize("kind", NONLINEAR)
def test_what_is_not_linear(backend, kind):
    operator = lg.FunctionOperator(NONLINEAR[kind], flat_space(backend, 9))
    report = lg.validate(operator)
    assert report.failed == ("linearity",)
    assert "JVP" in report["linearity"].advice


@settings(max_examples=20)
@given(size=st.floats(1e-8, 1.0), seed=st.integers(0, 99))
def test_a_small_part_that_is_not_linear(numpy_backend, size, seed):
    A = np.random.default_rng(seed).standard_normal((5, 5))
    operator = lg.FunctionOperator(lambda v: A @ v + size * np.sin(v), flat_space(numpy_backend, 5))
    assert "linearity" in lg.validate(operator).failed


class Overwriting(lg.LinearOperator):
    """Twice the identity, computed in its argument."""

    def __init__(self, space):
        self.__dict__["space"] = space

    domain = property(lambda self: self.space)

    def matvec(self, v):
        v *= 2.0
        return self.backend.copy(v)


class Buffered(Overwriting):
    """Twice the identity, always in the same memory."""

    def matvec(self, v):
        buffer = self.__dict__.setdefault("buffer", self.backend.zeros_like(v))
        buffer[...] = 2.0 * v
        return buffer


class Aliased(Overwriting):
    """The identity, by doing nothing."""

    def matvec(self, v):
        return v


class Broadcast(Overwriting):
    """A diagonal, with columns multiplied along the wrong axis."""

    def matvec(self, v):
        return self.d * v

    def matmat(self, v):
        return self.d * v

    @property
    def d(self):
        return constant(self.backend, np.arange(1.0, 5.0))


class Wider(Overwriting):
    """Products in another dtype than the space's."""

    def matvec(self, v):
        return self.backend.cast(v, "float64")


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("operator", "dtype", "fault"),
    [
        (Overwriting, "float64", "inputs"),
        (Buffered, "float64", "aliasing"),
        (Aliased, "float64", "aliasing"),
        (Broadcast, "float64", "columns"),
        (Wider, "float32", "formats"),
    ],
)
def test_careless_operators(request, name, operator, dtype, fault):
    if name != "numpy":
        request.getfixturevalue(name)
    report = lg.validate(operator(flat_space(lg.load(name), 4, dtype)))
    assert report[fault].failed
    assert set(report.failed) <= {fault, "formats"}  # where wrong columns show as well


def test_data_that_the_model_writes_to(numpy_backend):
    def model(p, x):
        return np.maximum(x, 0.0, out=x) @ p

    data = np.random.default_rng(0).standard_normal((5, 3)), np.ones(5)
    fit = lg.Objective(model, lg.losses.SquaredError(), data, jacobian=lambda p, x: np.maximum(x, 0.0))
    report = lg.validate(lg.GGN(fit, np.ones(3)))
    assert report.failed == ("inputs",)
    assert "the data" in report["inputs"].reason


def test_products_that_are_not_finite(backend):
    def product(v):
        return v / constant(backend, [1.0, 0.0, 1.0, 1.0]) if backend.name != "array_api_strict" else v * float("nan")

    with np.errstate(divide="ignore", invalid="ignore"):
        report = lg.validate(lg.FunctionOperator(product, flat_space(backend), symmetric=True))
    assert report.failed == ("finite",)
    assert report["finite"].error >= 3
    assert report["linearity"].reason == "means nothing while finite fails"


def test_a_curvature_that_is_not_finite_names_its_leaf(torch):
    def model(p, x):
        return x @ p["good"] + torch.sqrt(p["bad"] * 0.0) * p["bad"]

    data = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    params = {"bad": torch.ones(5, dtype=torch.float64), "good": torch.ones(3, dtype=torch.float64)}
    report = lg.validate(lg.GGN(lg.Objective(model, lg.losses.SquaredError(), data), params))
    assert report.failed == ("finite",)
    assert "bad" in report["finite"].reason


# what differs from call to call


def assert_differs(report, word="random"):
    assert report.failed == ("determinism",)
    assert word in report["determinism"].advice
    assert report["dense"].reason == "means nothing while determinism fails"


def test_products_that_differ(backend):
    rng = np.random.default_rng(0)
    operator = lg.FunctionOperator(lambda v: v * float(rng.random()), flat_space(backend))
    report = lg.validate(operator)
    assert report.failed == ("determinism",)
    assert "random" in report["determinism"].advice


def test_dropout_with_fresh_draws(torch):
    data = torch.randn(9, 6, dtype=torch.float64), torch.randint(3, (9,))
    params = torch.randn(6, 3, dtype=torch.float64)

    def model(p, x):
        return torch.nn.functional.dropout(x, 0.5) @ p

    for kind in (lg.GGN, lg.Hessian):
        assert_differs(lg.validate(kind(lg.Objective(model, lg.losses.CrossEntropy(), data), params)))


def test_a_module_with_a_generator_of_its_own(torch):
    class Noisy(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x + float(np.random.standard_normal()))  # noqa: NPY002  (the habit that is meant)

    net = Noisy(3, 2)
    fit = lg.Objective(net, lg.losses.CrossEntropy(), (torch.randn(4, 3), torch.randint(2, (4,))))
    assert_differs(lg.validate(lg.GGN(fit, net)), "draws from one seed")


def test_host_random_numbers_in_jax(jax):
    """The compiler freezes the first draw, so that products agree; the function itself does not."""
    rng = np.random.default_rng(0)
    jnp = jax.numpy

    def model(p, x):
        return jnp.tanh(x @ p) * rng.random()

    fit = lg.Objective(model, lg.losses.CrossEntropy(), (jnp.ones((4, 3)), jnp.array([0, 1, 1, 0])))
    report = lg.validate(lg.GGN(fit, jnp.asarray(rng.standard_normal((3, 2)))))
    assert_differs(report, "make the key an argument")
    assert report["determinism"].reason == "the model's outputs differ between calls"


def test_a_numpy_model_that_draws(numpy_backend):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 3))
    fit = lg.Objective(
        lambda p, x: x @ p + 0.1 * rng.standard_normal(6),
        lg.losses.SquaredError(),
        (x, np.zeros(6)),
        jacobian=lambda p, x: x,
    )
    assert_differs(lg.validate(lg.GGN(fit, np.ones(3))))


class Shuffled(Streamed):
    """Another sample of the batches at each pass."""

    def __iter__(self):
        self.passes += 1
        return iter(self.batches[self.passes % 2 :])


class Exhausted(Streamed):
    """Iterators that share what is left: the second pass finds nothing."""

    def __init__(self, batches):
        super().__init__(batches)
        self.left = iter(batches)

    def __iter__(self):
        return iter([*self.left])


@pytest.mark.parametrize("hold", [Shuffled, Exhausted])
def test_data_that_differ_from_pass_to_pass(torch, hold):
    case = Case("mlp", "softmax", "mean", 3, sizes=(2, 3))
    fit = objective(case, lg.load("torch"), hold=hold)
    assert_differs(lg.validate(lg.GGN(fit, put(lg.load("torch"), case.params()))), "hold the batches in a list")


def test_batches_in_another_order_are_the_same_data(torch):
    class Reordered(Streamed):
        def __iter__(self):
            self.passes += 1
            return iter(self.batches[:: 1 if self.passes % 2 else -1])

    case = Case("mlp", "softmax", "mean", 3, sizes=(1, 1, 2))
    fit = objective(case, lg.load("torch"), hold=Reordered)
    report = lg.validate(lg.GGN(fit, put(lg.load("torch"), case.params()))).raise_if_failed()
    assert report["determinism"].reason == "equal up to rounding"


# wrong derivatives


@lg.record
class WrongHessian(lg.losses.CrossEntropy):
    """diag(p) instead of diag(p) - p p^T: symmetric, positive, and wrong."""

    name: ClassVar[str] = "wrong"

    def curvature(self, xp, z, y):
        p = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
        return p / xp.sum(p, axis=-1, keepdims=True)


@lg.record
class WrongGradient(lg.losses.CrossEntropy):
    """Twice the slope, with the right curvature."""

    def gradient(self, xp, outputs, targets, weights):
        return 2.0 * super().gradient(xp, outputs, targets, weights)


@pytest.mark.parametrize(("name", "dtype"), [*product(["numpy", "torch"], ["float64", "float32"]), ("jax", "float64")])
def test_a_wrong_closed_form_of_the_loss_hessian(request, name, dtype):
    if name != "numpy":
        request.getfixturevalue(name)
    fit, params = problem(name, dtype=dtype)
    given = {"jacobian": fit.supplied.jacobian} if fit.supplied else {}
    wrong = lg.Objective(fit.model, WrongHessian(), fit.batches, **given)
    for kind in (lg.GGN, lg.LossHessian) if name != "jax" else (lg.GGN,):
        report = lg.validate(kind(wrong, params))
        assert report.failed == ("dense", "differences")
        assert "closed form" in report["dense"].advice


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_wrong_closed_form_of_the_loss_gradient(request, name):
    if name != "numpy":
        request.getfixturevalue(name)
    fit, params = problem(name)
    given = {"jacobian": fit.supplied.jacobian} if fit.supplied else {}
    wrong = lg.Objective(fit.model, WrongGradient(), fit.batches, **given)
    failed = lg.validate(lg.GGN(wrong, params)).failed
    assert "gradient" in failed
    assert name == "numpy" or failed == ("gradient",)  # NumPy's oracle is made of that gradient


def linear_fit(**given):
    x = np.random.default_rng(0).standard_normal((6, 3))
    right = {"jvp": lambda p, x, v: np.cos(x @ p) * (x @ v), "vjp": lambda p, x, u: x.T @ (np.cos(x @ p) * u)}
    fit = lg.Objective(lambda p, x: np.sin(x @ p), lg.losses.SquaredError(), (x, np.ones(6)), **(right | given))
    return lg.GGN(fit, np.array([0.3, -0.2, 0.5]))


def test_supplied_products_that_are_wrong(numpy_backend):
    def reversed_jvp(p, x, v):
        return np.cos(x @ p) * (x @ v[::-1])

    def reversed_vjp(p, x, u):
        return (x.T @ (np.cos(x @ p) * u))[::-1]

    assert lg.validate(linear_fit()).passed
    general = {"adjoint", "symmetry", "psd", "dense", "differences"}
    assert set(lg.validate(linear_fit(jvp=reversed_jvp)).failed) == general
    assert set(lg.validate(linear_fit(vjp=reversed_vjp)).failed) == general | {"gradient"}
    both = lg.validate(linear_fit(jvp=reversed_jvp, vjp=reversed_vjp))
    assert both.failed == ("dense", "differences", "gradient")  # a pair of adjoints, of another function
    assert "jacobian=" in both["gradient"].advice


@settings(max_examples=15)
@given(size=st.floats(1e-5, 1.0), row=st.integers(0, 5), column=st.integers(0, 2))
def test_a_supplied_jacobian_that_is_wrong_in_one_entry(numpy_backend, size, row, column):
    x = np.random.default_rng(0).standard_normal((6, 3))

    def jacobian(p, x):
        J = np.cos(x @ p)[:, None] * x
        J[row, column] += size
        return J

    fit = lg.Objective(lambda p, x: np.sin(x @ p), lg.losses.SquaredError(), (x, np.ones(6)), jacobian=jacobian)
    report = lg.validate(lg.GGN(fit, np.array([0.3, -0.2, 0.5])))
    assert {"dense", "differences"} <= set(report.failed)


def test_a_supplied_hessian_product_that_is_wrong(numpy_backend):
    def hessian(gradient, hvp):
        return lg.Hessian(
            lg.Objective.from_function(lambda p: (p @ p) ** 2 / 4, gradient=gradient, hvp=hvp), np.arange(3.0)
        )

    def gradient(p):
        return (p @ p) * p

    def hvp(p, v):
        return (p @ p) * v + 2 * (p @ v) * p

    assert lg.validate(hessian(gradient, hvp)).passed
    assert lg.validate(hessian(gradient, lambda p, v: (p @ p) * v)).failed == ("dense", "differences")
    assert lg.validate(hessian(lambda p: 2 * gradient(p), lambda p, v: 2 * hvp(p, v))).failed == ("gradient",)


def test_a_custom_backward_that_is_wrong(torch):
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, u):
            (x,) = ctx.saved_tensors
            return 2 * x**2 * u  # should be 3

    fit = lg.Objective.from_function(lambda p: Cube.apply(p).sum())
    report = lg.validate(lg.Hessian(fit, torch.tensor([1.0, 2.0], dtype=torch.float64)))
    assert report.failed == ("gradient",)  # the products are the derivatives of the gradient there is


def test_a_hidden_dependence_in_a_backward(torch):
    """First derivatives are right, second ones lose a term: what happens in fused kernels."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.slope = (2 * x).detach()
            return x**2

        @staticmethod
        def backward(ctx, u):
            return ctx.slope * u

    fit = lg.Objective.from_function(lambda p: Square.apply(torch.sin(p)).sum())
    report = lg.validate(lg.Hessian(fit, torch.tensor([1.0, 2.0], dtype=torch.float64)))
    assert "differences" in report.failed
    assert "custom backward rule" in report["differences"].advice


def test_a_hidden_dependence_where_the_gradient_is_constant(torch):
    """Differences of exactly zero, beside products that are not: 3 is 3 (2 x) / x when the 2 x is saved as a number."""

    class Six(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.twice = 2 * x
            ctx.save_for_backward(x)
            return 6 * x

        @staticmethod
        def backward(ctx, g):
            return 3 * g * ctx.twice / ctx.saved_tensors[0]

    objective = lg.Objective.from_function(lambda x: Six.apply(x).sum())
    for x in ([1.0, 2.0], [1e-3, 1e3], [-5.0]):
        report = lg.validate(lg.Hessian(objective, torch.tensor(x, dtype=torch.float64)))
        assert report["differences"].failed, report
    plane = lg.Objective.from_function(lambda x: (6 * x).sum())
    assert lg.validate(lg.Hessian(plane, torch.ones(3, dtype=torch.float64))).passed


def test_a_supplied_hessian_product_where_there_is_none(numpy_backend):
    plane = lg.Objective.from_function(lambda p: float(p.sum()), gradient=np.ones_like, hvp=lambda p, v: 0.1 * v)
    assert lg.validate(lg.Hessian(plane, np.ones(3)))["differences"].failed


def test_forward_over_reverse_on_layer_norm(torch):
    """What ``torch.func.hessian`` does: silently wrong in torch 2.13, and it looks symmetric."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.LayerNorm(5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    ).double()
    data = torch.randn(10, 4, dtype=torch.float64), torch.randint(3, (10,))
    H = lg.Hessian(lg.Objective(net, lg.losses.CrossEntropy(), data), net)
    bare = copy.deepcopy(net)

    def loss(params):
        outputs = torch.func.functional_call(bare, params, (data[0],))
        return torch.nn.functional.cross_entropy(outputs, data[1])

    params = {name: p.detach() for name, p in net.named_parameters()}

    def product(v):
        return torch.func.jvp(torch.func.jacrev(loss), (params,), (v,))[1]

    theirs = lg.FunctionOperator(product, H.domain, symmetric=True, on="tree")
    report = lg.validate(theirs, against=H)
    assert lg.validate(H).passed
    if report.passed:
        pytest.skip("this version of torch has mended it")
    assert {"dense", "differences"} <= set(report.failed)
    assert report["dense"].error > 1e-3
    assert "torch.func.hessian" in report["differences"].advice


def test_an_operator_is_held_against_another(torch):
    fit, params = problem("torch")
    G, B, H = lg.GGN(fit, params), lg.BlockGGN(fit, params), lg.Hessian(fit, params)
    mine = lg.FunctionOperator(lambda v: G.matvec(v), G.domain, psd=True)
    assert lg.validate(mine, against=G).passed
    assert lg.validate(mine).skipped[-4:] == ("dense", "differences", "gradient", "batches")
    for other in (B, H, 1.001 * G, lg.Damped(G, 1e-6)):
        assert "dense" in lg.validate(mine, against=other).failed


# batches


def test_means_of_batches_that_are_not_weighted(torch, monkeypatch):
    """The planted fault: each batch is divided by its own weight, and the mean of those is taken."""
    case = Case("mlp", "softmax", "mean", 3, sizes=(1, 4))
    summed = points._normalised

    def averaged(point, sums):
        value, vector, weight = sums
        count = len(point.objective.batches)
        return (
            summed(point, (value, vector, weight))
            if count == 1
            else (value / count, vector / count, weight, 1.0 / count)
        )

    def by_its_own(term, x):
        (value, gradient, weight), piece = term.linearize(x).parted()
        return (value / weight, gradient / weight, weight), lg.replace(
            piece, weights=piece.outputs[:, 0] * 0 + 1 / weight
        )

    monkeypatch.setattr(points, "_normalised", averaged)
    several = objective(case, lg.load("torch"))
    monkeypatch.setattr(points, "_linearize", by_its_own)
    report = lg.validate(lg.GGN(several, put(lg.load("torch"), case.params())))
    assert {"dense", "differences", "gradient", "batches"} == set(report.failed)
    assert "average of averages" in report["batches"].advice


def test_a_mean_of_operators_on_uneven_batches(torch):
    case = Case("mlp", "softmax", "mean", 3, sizes=(1, 4))
    fit, params = objective(case, lg.load("torch")), put(lg.load("torch"), case.params())
    one, four = (lg.GGN(fit.with_data(batch), params) for batch in fit.batches)
    assert lg.validate(0.2 * one + 0.8 * four, against=lg.GGN(fit, params)).passed
    assert lg.validate(0.5 * one + 0.5 * four, against=lg.GGN(fit, params)).failed == ("dense", "differences")


def test_a_loss_that_couples_the_examples_of_a_batch(torch):
    contrast = lg.losses.FromFunction(lambda z, y: (z.sum(0) ** 2).sum(), reduction="sum", per_example=False)
    case = Case("mlp", "squared", "sum", 3, sizes=(2, 3))
    plain = objective(case, lg.load("torch"))
    fit = lg.Objective(plain.model, contrast, list(plain.batches))
    report = lg.validate(lg.GGN(fit, put(lg.load("torch"), case.params())))
    assert report.failed == ("batches",)
    assert "couples" in report["batches"].advice
