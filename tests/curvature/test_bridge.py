"""Models of one framework with the arrays of another: the same numbers as natively, and nothing shared too early."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import FULL, spare

import linop_gn as lg
from linop_gn.testing import poison

from .cases import Case, Streamed, cases, host, objective, put
from .networks import close, leaves

IN_CI_ON_JAX = (
    "test_products_equal_native_ones",
    "test_scalar_functions_and_residuals",
    "test_memory_that_cannot_be_lent_as_it_is",
    "test_memory_may_be_written_to_as_soon_as_a_product_is_back",
    "test_parameters_may_be_written_to_once_the_operator_is_there",
    "test_data_that_do_not_fit_are_refused_as_natively",
)

GUESTS = ["torch", "jax", "autograd"]
CASE = Case("mlp", "softmax", "mean", 3, "weights", sizes=(3, 2), ignore=True)


@pytest.fixture(params=GUESTS)
def guest(request):
    pytest.importorskip(request.param)
    return request.param


def native(guest):
    """A framework whose own arrays are differentiated, to compare with."""
    return lg.load("torch" if guest == "autograd" else guest)


def both(case, guest, backend, dtype="float64", hold=list):
    """(operator maker on NumPy's arrays bridged, the same on native ones)"""
    pairs = []
    for ops, derivatives in ((backend, guest), (native(guest), None)):
        pairs.append((objective(case, ops, dtype, hold, derivatives), put(ops, case.params(), dtype)))
    return pairs


@pytest.mark.parametrize("curvature", [lg.GGN, lg.Hessian, lg.BlockGGN])
def test_products_equal_native_ones(guest, numpy_backend, curvature):
    if guest == "autograd":
        pytest.importorskip("torch")
    spare(lg.load(guest), FULL or curvature is not lg.BlockGGN)
    (mine, params), (theirs, foreign) = both(CASE, guest, numpy_backend)
    A, B = curvature(mine, params), curvature(theirs, foreign)
    v = np.random.default_rng(0).standard_normal(A.shape[1])
    want = B.backend.to_numpy(B @ put(B.backend, v))
    product = A @ v
    close(product, want, 1e-14)
    assert type(product) is np.ndarray
    assert product.flags.writeable
    close(host(numpy_backend, mine.gradient(params)), host(B.backend, theirs.gradient(foreign)), 1e-14)
    close(float(mine.value(params)), float(theirs.value(foreign)), 1e-14)


def test_jacobian_and_loss_hessian_equal_native_ones(guest, numpy_backend):
    if guest == "autograd":
        pytest.importorskip("torch")
    (mine, params), (theirs, foreign) = both(CASE._replace(sizes=(5,)), guest, numpy_backend)
    J, K = lg.Jacobian(mine, params), lg.Jacobian(theirs, foreign)
    close(J.to_dense(), K.backend.to_numpy(K.to_dense()), 1e-14)
    close(J.T.to_dense(), J.to_dense().T, 1e-14)
    close(mine.outputs(params), K.backend.to_numpy(theirs.outputs(foreign)), 1e-14)
    H, M = lg.LossHessian(mine, params), lg.LossHessian(theirs, foreign)
    close(H.to_dense(), M.backend.to_numpy(M.to_dense()), 1e-14)
    close((J.T @ H @ J).to_dense(), lg.GGN(mine, params).to_dense(), 1e-13)


@settings(max_examples=12)
@given(cases(networks=("mlp", "residual", "single", "decay")), st.sampled_from(["float64", "float32"]))
def test_hessians_of_every_loss_in_torch(torch, numpy_backend, case, dtype):
    for derivatives in ("torch", "autograd"):
        mine, params = (
            objective(case, numpy_backend, dtype, list, derivatives),
            put(numpy_backend, case.params(), dtype),
        )
        theirs, foreign = objective(case, lg.load("torch"), dtype), put(lg.load("torch"), case.params(), dtype)
        A, B = lg.Hessian(mine, params), lg.Hessian(theirs, foreign)
        want = B.to_dense().numpy()
        product = A.to_dense()
        assert product.dtype == dtype
        close(product, want, 1e-12 if dtype == "float64" else 2e-4)


def test_blocks_can_be_taken_apart(guest, numpy_backend):
    made, params = objective(CASE, numpy_backend, derivatives=guest), put(numpy_backend, CASE.params())
    B = lg.BlockGGN(made, params)
    whole, start = B.to_dense(), 0
    for block in B.diagonal_blocks().values():
        stop = start + block.shape[0]
        close(block.to_dense(), whole[start:stop, start:stop], 1e-13)
        start = stop
    assert start == len(whole)


def test_streams_cross_batch_by_batch(guest, numpy_backend):
    held, params = objective(CASE, numpy_backend, derivatives=guest), put(numpy_backend, CASE.params())
    streamed = objective(CASE, numpy_backend, hold=Streamed, derivatives=guest)
    v = lg.GGN(held, params).domain.random(0)
    for curvature in (lg.GGN, lg.Hessian, lg.BlockGGN):
        close(curvature(streamed, params) @ v, curvature(held, params) @ v, 1e-13)
    close(host(numpy_backend, streamed.gradient(params)), host(numpy_backend, held.gradient(params)), 1e-13)


def test_optimisation_takes_the_same_steps_as_natively(guest, numpy_backend):
    if guest == "autograd":
        pytest.importorskip("torch")
    method = lg.LevenbergMarquardt(solver=lg.CG(steps=5))
    (mine, params), (theirs, foreign) = both(CASE, guest, numpy_backend)
    fit, want = lg.minimize(mine, params, method, max_steps=6), lg.minimize(theirs, foreign, method, max_steps=6)
    close(fit.history["value"], want.history["value"], 1e-10)
    close(host(numpy_backend, fit.params), host(native(guest), want.params), 1e-8)
    assert all(type(leaf) is np.ndarray for leaf in leaves(fit.params))


def test_scalar_functions_and_residuals(guest):
    t = np.linspace(0.0, 1.0, 7)

    def residuals(p, t):
        return p[0] * lg.namespace(t).exp(p[1] * t) - 1.0

    p = np.array([0.7, 0.3])
    fit = lg.Objective.from_residuals(residuals, t, derivatives=guest)
    J = np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1)
    close(lg.GGN(fit, p).to_dense(), J.T @ J, 1e-14)
    close(fit.gradient(p), J.T @ residuals(p, t), 1e-14)
    other = t[:4]
    close(float(fit.with_data(other).value(p)), 0.5 * np.sum(residuals(p, other) ** 2), 1e-14)

    bowl = lg.Objective.from_function(lambda p: p[0] ** 2 * p[1] ** 3, derivatives=guest)
    close(bowl.gradient(p), [2 * p[0] * p[1] ** 3, 3 * p[0] ** 2 * p[1] ** 2], 1e-14)
    close(float(bowl.value(p)), p[0] ** 2 * p[1] ** 3, 1e-14)
    want = [[2 * p[1] ** 3, 6 * p[0] * p[1] ** 2], [6 * p[0] * p[1] ** 2, 6 * p[0] ** 2 * p[1]]]
    close(lg.Hessian(bowl, p).to_dense(), want, 1e-14)


def test_a_module_with_parameters_in_numpy(torch):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    loss = torch.nn.functional.cross_entropy
    params = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
    mine = lg.Objective(module, lg.losses.CrossEntropy(), (x.numpy(), y.numpy()), derivatives="torch")
    value, gradient = mine.value_and_gradient(params)
    close(float(value), loss(module(x), y).item(), 1e-14)
    loss(module(x), y).backward()
    for name, p in module.named_parameters():
        close(gradient[name], p.grad.numpy(), 1e-14)
    callable_loss = lg.Objective(
        module, lambda z, y: loss(z, y, reduction="none"), (x.numpy(), y.numpy()), derivatives="torch"
    )
    v = lg.GGN(mine, params).domain.random(0)
    close(lg.GGN(callable_loss, params) @ v, lg.GGN(mine, params) @ v, 1e-12)


# dtypes, devices, memory


def test_double_precision_where_jax_has_it_switched_off(jax, numpy_backend):
    case = Case("mlp", "softmax", "mean", 1)
    with jax.enable_x64(False):
        mine, params = objective(case, numpy_backend, derivatives="jax"), put(numpy_backend, case.params())
        G = lg.GGN(mine, params)
        product = G @ G.domain.random(0)
        assert product.dtype == np.float64
        single, small = (
            objective(case, numpy_backend, "float32", derivatives="jax"),
            put(numpy_backend, case.params(), "float32"),
        )
        assert lg.GGN(single, small).to_dense().dtype == np.float32
    want = objective(case, lg.load("torch"))
    there = put(lg.load("torch"), case.params())
    close(product, (lg.GGN(want, there) @ lg.GGN(want, there).domain.random(0)).numpy(), 1e-14)


def awkward(x):
    """Arrays of the same values whose memory cannot be lent as it is."""
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    fixed = x.copy()
    fixed.flags.writeable = False
    backwards = x[::-1].copy()[::-1]
    return {"gaps": wide[..., ::2], "columns first": np.asfortranarray(x), "read-only": fixed, "backwards": backwards}


@pytest.mark.parametrize("kind", ["gaps", "columns first", "read-only", "backwards"])
def test_memory_that_cannot_be_lent_as_it_is(guest, kind):
    rng = np.random.default_rng(0)
    x, y, w, v = (rng.standard_normal(shape) for shape in ((6, 4), (6, 2), (4, 2), (4, 2)))

    def model(w, x):
        return lg.namespace(x).tanh(x @ w)

    def product(x, y, w, v):
        return lg.GGN(lg.Objective(model, lg.losses.SquaredError(), (x, y), derivatives=guest), w) @ v

    want = product(x, y, w, v)
    given = [awkward(a)[kind] for a in (x, y, w, v)]
    np.testing.assert_array_equal(product(*given), want)
    for a, b in zip(given, (x, y, w, v), strict=True):
        np.testing.assert_array_equal(a, b)


def test_devices_survive(torch):
    pytest.importorskip("array_api_strict")
    from linop_gn.testing.strict import DEVICE, strict_backend

    made, params = objective(CASE, strict_backend, derivatives="torch"), put(strict_backend, CASE.params())
    for curvature in (lg.GGN, lg.Hessian):
        assert (curvature(made, params) @ curvature(made, params).domain.random(0)).device == DEVICE
    fit = lg.minimize(made, params, max_steps=2)
    assert {leaf.device for leaf in leaves(fit.params)} == {DEVICE}


@pytest.mark.parametrize("guest", ["torch", "jax"])
def test_memory_may_be_written_to_as_soon_as_a_product_is_back(guest):
    """JAX queues its work: written to while lent, a vector gave wrong products in 10 cases of 20."""
    pytest.importorskip(guest)
    n = 700
    rng = np.random.default_rng(0)
    aligned = np.zeros(n * n + 16)
    offset = (-aligned.ctypes.data // 8) % 8  # JAX takes memory as it is where it starts at 64 bytes
    v = aligned[offset : offset + n * n]
    assert v.ctypes.data % 64 == 0
    x, w = rng.standard_normal((n, n)), rng.standard_normal((n, n)) / n
    made = lg.Objective(
        lambda w, x: lg.namespace(x).tanh(x @ w), lg.losses.SquaredError(), (x, np.zeros((n, n))), derivatives=guest
    )
    G = lg.GGN(made, w)
    first = rng.standard_normal(n * n)
    want = G @ first.copy()
    for _ in range(10):
        v[:] = first
        product = G @ v
        v[:] = np.nan
        np.testing.assert_allclose(product, want, rtol=1e-12, atol=1e-12 * abs(want).max())
        product[:] = np.nan  # a solver writes into products, which must not be anybody else's memory


@pytest.mark.parametrize("guest", ["torch", "jax", "autograd"])
def test_parameters_may_be_written_to_once_the_operator_is_there(guest):
    pytest.importorskip(guest)
    rng = np.random.default_rng(0)
    x, w, v = rng.standard_normal((300, 300)), rng.standard_normal((300, 300)) / 300, rng.standard_normal((300, 300))
    made = lg.Objective(
        lambda w, x: lg.namespace(x).tanh(x @ w) @ w, lg.losses.SquaredError(), (x, x), derivatives=guest
    )
    want = lg.GGN(made, w.copy()) @ v
    mine = w.copy()
    G = lg.GGN(made, mine)
    G.prepare()
    mine[:] = np.nan
    np.testing.assert_allclose(G @ v, want, rtol=1e-12, atol=1e-14)


# errors at the door


def plain(w, x):
    return x @ w


def make(derivatives, **more):
    x = np.ones((2, 3))
    return lg.Objective(plain, lg.losses.SquaredError(), (x, np.ones(2)), derivatives=derivatives, **more)


def test_a_framework_without_derivatives_is_refused():
    x = poison(np.ones((2, 3)))
    made = lg.Objective(plain, lg.losses.SquaredError(), (x, x[:, 0]), derivatives="numpy")
    with pytest.raises(ValueError, match="numpy has no derivatives of its own"):
        made.gradient(poison(np.ones(3)))


def test_an_unknown_framework_is_refused_at_once():
    with pytest.raises(LookupError, match=r"no backend called 'pytorch'.*Did you mean 'torch'"):
        make("pytorch")
    with pytest.raises(TypeError, match="the name of a framework"):
        make(np)


def test_supplied_derivatives_beside_a_framework_are_refused():
    with pytest.raises(ValueError, match="choose"):
        make("torch", jacobian=lambda w, x: x)


def test_arrays_that_a_compiler_follows_are_refused(jax):
    jnp = jax.numpy
    made = lg.Objective(plain, lg.losses.SquaredError(), (jnp.ones((2, 3)), jnp.ones(2)), derivatives="torch")
    with pytest.raises(ValueError, match="differentiates its own arrays"):
        made.gradient(jnp.ones(3))


def test_no_derivatives_at_all_lists_the_ways():
    with pytest.raises(lg.MissingDerivativeError) as error:
        make(None).gradient(np.ones(3))
    for way in ("jacobian=", "jvp=", "derivatives=", "finite differences".capitalize()):
        assert way in str(error.value)


def test_data_that_do_not_fit_are_refused_as_natively(guest):
    x, y = np.ones((2, 3)), np.array([0, 7])
    made = lg.Objective(plain, lg.losses.CrossEntropy(), (x, y), derivatives=guest)
    with pytest.raises(ValueError, match="class indices must lie in"):
        made.gradient(np.ones((3, 2)))
    x[0, 0] = np.nan
    made = lg.Objective(plain, lg.losses.CrossEntropy(), (x, np.array([0, 1])), derivatives=guest)
    with pytest.raises(ValueError, match="NaN or infinity"):
        made.gradient(np.ones((3, 2)))


def test_validate_finds_bridged_operators_right(guest, numpy_backend):
    case = Case("mlp", "softmax", "mean", 5, sizes=(3, 2))
    made, params = objective(case, numpy_backend, derivatives=guest), put(numpy_backend, case.params())
    for curvature in (lg.GGN, lg.Hessian) if guest != "jax" or FULL else (lg.Hessian,):
        report = lg.validate(curvature(made, params))
        assert report.passed, report
        assert {check.name for check in report.checks if check.status == "passed"} >= {"dense", "differences"}


def models_of(guest):
    """Models written in the framework itself, which take nothing else's arrays."""
    if guest == "torch":
        torch = pytest.importorskip("torch")
        module = torch.nn.Linear(3, 4).double()
        yield module, {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
        function = torch.tanh
    else:
        function = pytest.importorskip("jax.numpy").tanh
    yield lambda w, x: function(x @ w), np.random.default_rng(0).standard_normal((3, 4))


@pytest.mark.parametrize("guest", ["torch", "jax"])
@pytest.mark.parametrize("hold", [list, Streamed])
def test_validate_takes_models_that_know_one_framework_alone(guest, hold):
    rng = np.random.default_rng(1)
    data = [(rng.standard_normal((4, 3)), rng.integers(0, 4, 4)) for _ in range(2)]
    for model, params in models_of(guest):
        made = lg.Objective(model, lg.losses.CrossEntropy(), hold(data), derivatives=guest)
        report = lg.validate(lg.GGN(made, params))
        assert report.passed, report


def test_streams_are_traced_in_their_own_precision(jax):
    seen = []

    def model(w, x):
        seen.append((str(w.dtype), str((x @ w).dtype)))
        return x @ w

    rng = np.random.default_rng(0)
    data = [(rng.standard_normal((4, 3)), rng.integers(0, 4, 4)) for _ in range(2)]
    with jax.enable_x64(False):
        for w in (rng.standard_normal((3, 4)), rng.standard_normal((3, 4)).astype(np.float32)):
            made = lg.Objective(model, lg.losses.CrossEntropy(), Streamed(data), derivatives="jax")
            held = lg.Objective(model, lg.losses.CrossEntropy(), data, derivatives="jax")
            close(float(made.value(w)), float(held.value(w)), 1e-6)
            assert {pair[1] for pair in seen} == {"float64"}


def test_integers_that_jax_would_wrap_are_refused(jax):
    large = np.array([[2**31 + 5]])
    made = lg.Objective(
        lambda w, x: w * x[:, 0], lg.losses.SquaredError(), (large, np.ones(1, np.float32)), derivatives="jax"
    )
    with jax.enable_x64(False), pytest.raises(OverflowError, match="do not fit into int32"):
        made.value(np.ones(1, np.float32))


def test_numbers_cross_as_what_they_are(torch, numpy_backend):
    """Whole ones above 2^24 as well, which float32 has no room for."""
    made, params = objective(CASE, numpy_backend, derivatives="torch"), put(numpy_backend, CASE.params())
    piece, seen = lg.GGN(made, params).prepare().pieces[0], []

    def note(inner, v, number):
        seen.append(number)
        return v

    given = [2**24 + 1, 0.5, np.float64(0.25), np.int64(7), np.array(3)]
    for number in given:
        piece.apply(note, np.ones(3), number)
    assert seen == given
    assert [type(number) for number in seen[:2]] == [int, float]
