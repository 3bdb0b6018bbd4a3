"""Losses as somebody outside writes them: value, slope and curvature serve every route on every framework."""

import re
from pathlib import Path

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.curvature.losses import CrossEntropy, SquaredError

from .cases import ByComplexStep, Case, host, put
from .networks import close, jacobian, leaves

IN_CI_ON_JAX = (
    "test_validate_finds_it_right_and_a_wrong_curvature_wrong",
    "test_blocks_of_ones_own_are_as_good_as_closed_forms",
)

CASE = Case("mlp", "squared", "mean", 3, "weights", sizes=(3, 2))


@lg.record
class PseudoHuber(lg.losses.Loss):
    convex = True
    width: float = 1.0

    def value(self, xp, z, y):
        return self.width**2 * (xp.sqrt(1 + ((z - y) / self.width) ** 2) - 1)

    def slope(self, xp, z, y):
        return (z - y) / xp.sqrt(1 + ((z - y) / self.width) ** 2)

    def curvature(self, xp, z, y):
        return (1 + ((z - y) / self.width) ** 2) ** -1.5


@lg.record
class Cauchy(lg.losses.Loss):
    def value(self, xp, z, y):
        return xp.log1p((z - y) ** 2)

    def slope(self, xp, z, y):
        return 2 * (z - y) / (1 + (z - y) ** 2)

    def curvature(self, xp, z, y):
        return 2 * (1 - (z - y) ** 2) / (1 + (z - y) ** 2) ** 2


@lg.record
class OwnSquares(lg.losses.Loss):
    convex = True
    example_axes = 1

    def value(self, xp, z, y):
        return 0.5 * (z - y) ** 2

    def slope(self, xp, z, y):
        return z - y

    def curvature(self, xp, z, y):
        return xp.ones_like(z)


@lg.record
class OwnSoftmax(CrossEntropy):
    """The Hessian as blocks, whose root is found by their eigenvalues."""

    def curvature(self, xp, z, y):
        p = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
        p = p / xp.sum(p, axis=-1, keepdims=True)
        return p[..., None] * (xp.eye(z.shape[-1], dtype=z.dtype) - p[..., None, :])


def objective(backend, loss, case=CASE, dtype="float64"):
    batches = [tuple(put(backend, part, dtype) for part in batch if part is not None) for batch in case.batches()]
    given = {} if backend.calculus is not None else {"jacobian": ByComplexStep(case.net.model, backend)}
    return lg.Objective(case.net.model, loss, batches if len(batches) > 1 else batches[0], **given)


def by_hand(case=CASE, width=0.5):
    """Value, gradient and G from residuals of all batches."""
    params, (x, y, w) = case.params(), [np.concatenate(parts) for parts in zip(*case.batches(), strict=True)]
    r = case.net.model(params, x) - y
    J = jacobian(case.net.model, params, x)
    w = np.broadcast_to(w[:, None] if w.ndim < r.ndim else w, r.shape)
    root = np.sqrt(1 + (r / width) ** 2)
    weighed = (w / w.sum()).reshape(-1)
    value = weighed @ (width**2 * (root - 1)).reshape(-1)
    return value, J.T @ (weighed * (r / root).reshape(-1)), (J.T * (weighed * (root**-3).reshape(-1))) @ J


def test_a_robust_loss_serves_every_route(backend):
    made, params = objective(backend, PseudoHuber(0.5)), put(backend, CASE.params())
    value, gradient, G = by_hand()
    close(host(backend, made.value(params)), [value], 1e-12)
    close(host(backend, made.gradient(params)), gradient, 1e-12)
    operator = lg.GGN(made, params)
    assert operator.psd
    close(backend.to_numpy(operator.to_dense()), G, 1e-12)
    K = lg.Gram(made, params)
    W = K.root
    v = put(backend, np.random.default_rng(0).standard_normal(len(G)))
    close(host(backend, W.T @ (W @ v)), G @ backend.to_numpy(v), 1e-12)
    step = lg.solve(lg.Damped(operator, 0.1), -made.at(params).gradient, lg.GramSolve(rtol=1e-9))
    assert step.succeeded
    close(host(backend, step.x), np.linalg.solve(G + 0.1 * np.eye(len(G)), -gradient), 1e-8)
    scaled = lg.CG(rtol=1e-8, preconditioner=lg.preconditioners.EmpiricalFisher())
    assert lg.solve(lg.Damped(operator, 0.1), -made.at(params).gradient, scaled).succeeded
    B = lg.BlockGGN(made, params)
    first = B.blocks[0].space.size
    close(backend.to_numpy(B.diagonal_blocks()["fc1"].to_dense()), G[:first, :first], 1e-12)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_validate_finds_it_right_and_a_wrong_curvature_wrong(request, name):
    if name != "numpy":
        request.getfixturevalue(name)
    backend = lg.load(name)
    case = CASE._replace(sizes=(4,))

    @lg.record
    class Wrong(PseudoHuber):
        def curvature(self, xp, z, y):
            return (1 + ((z - y) / self.width) ** 2) ** -0.5

    params = put(backend, case.params())
    assert lg.validate(lg.GGN(objective(backend, PseudoHuber(), case), params)).passed
    assert not lg.validate(lg.GGN(objective(backend, Wrong(), case), params)).passed
    if backend.calculus is not None:
        assert lg.validate(lg.Hessian(objective(backend, PseudoHuber(), case), params)).passed


def test_its_numbers_neither_widen_nor_go_unchecked(numpy_backend):
    made = objective(numpy_backend, PseudoHuber(np.float64(0.5)), dtype="float32")
    params = put(numpy_backend, CASE.params(), "float32")
    assert {x.dtype for x in (made.value(params), *leaves(made.gradient(params)))} == {np.dtype("float32")}
    wide = objective(numpy_backend, PseudoHuber(np.asarray(0.5)), dtype="float32")
    assert (lg.GGN(wide, params) @ params)["fc1"]["bias"].dtype == np.float32
    with pytest.raises(TypeError, match="PseudoHuber: targets are missing"):
        PseudoHuber().check(numpy_backend, (3,), None, None)
    with pytest.raises(ValueError, match=r"PseudoHuber: targets must have the outputs' shape \(3,\)"):
        PseudoHuber().check(numpy_backend, (3,), np.zeros(2), None)


def test_a_loss_that_is_not_convex_has_no_root(numpy_backend):
    made, params = objective(numpy_backend, Cauchy()), CASE.params()
    assert not lg.GGN(made, params).psd
    with pytest.raises(ValueError, match=r"lg\.Gram needs a root S .* Cauchy is not known to be convex"):
        lg.Gram(made, params)


def test_a_value_alone_is_differentiated(torch):
    @lg.record
    class Bare(lg.losses.Loss):
        value = PseudoHuber.value
        width = 0.5

    backend = lg.load("torch")
    made, params = objective(backend, Bare()), put(backend, CASE.params())
    close(host(backend, made.gradient(params)), by_hand()[1], 1e-12)
    close(backend.to_numpy(lg.GGN(made, params).to_dense()), by_hand()[2], 1e-12)
    with pytest.raises(ValueError, match="Bare has no closed forms"):
        lg.Gram(made, params)


def test_a_closed_form_that_nothing_would_ask_is_refused():
    with pytest.raises(TypeError, match=r"Old defines hessian_product.*define curvature"):

        class Old(PseudoHuber):
            def hessian_product(self, xp, outputs, targets, weights, v):
                return v


@pytest.mark.parametrize("blocks", [False, True])
def test_a_squared_error_of_ones_own_solves_the_gram_system_alike(numpy_backend, blocks):
    """In float32 one step leaves 4e-7 of the gradient where q with S q = dL/dz is known, 2e-2 where it is not."""

    class InBlocks(OwnSquares):
        def curvature(self, xp, z, y):
            return xp.ones_like(z)[..., None] * xp.eye(z.shape[-1], dtype=z.dtype)

    rng = np.random.default_rng(0)
    X = (rng.standard_normal((8, 60)) * 10.0 ** -np.linspace(0, 2, 8)[:, None]).astype("float32")
    y, w = (rng.standard_normal(shape).astype("float32") for shape in ((8, 3), (60, 3)))
    found = []
    for loss in (SquaredError(), InBlocks() if blocks else OwnSquares()):
        products = {"jvp": lambda w, x, v: x @ v, "vjp": lambda w, x, u: x.T @ u}
        made = lg.Objective(lambda w, x: x @ w, loss, (X, y), **products)
        A = lg.Damped(lg.GGN(made, w), 1e-5 * float(np.linalg.norm(X, 2) ** 2) / 8)
        b = -made.at(w).gradient
        step = lg.solve(A, b, lg.GramSolve(rtol=0.0, max_steps=1))
        residual = np.linalg.norm(A @ step.x - b) / np.linalg.norm(b)
        assert residual < 1e-5
        found.append(step.x)
    close(found[0], found[1], 0 if not blocks else 1e-4)


def test_blocks_of_ones_own_are_as_good_as_closed_forms(backend):
    case = Case("mlp", "softmax of probabilities", "mean", 3, sizes=(3, 2))
    if backend.name == "array_api_strict":
        pytest.skip("xp.eye of a loss would need the device")
    params = put(backend, case.params())
    K, L = (lg.Gram(objective(backend, loss, case), params) for loss in (CrossEntropy(), OwnSoftmax()))
    u = put(backend, np.random.default_rng(0).standard_normal(K.domain.size))
    pushed = [host(backend, x.root.T @ (x.root @ (K.root.T @ u))) for x in (K, L)]
    close(pushed[1], pushed[0], 1e-10)


def test_weights_of_blocks_belong_to_whole_examples():
    z, v = np.ones((2, 3)), np.ones((2, 3))
    loss = OwnSoftmax()
    for w in (np.array([0.0, 2.0]), np.array([[0.0], [2.0]])[:, 0]):
        close(loss.hessian_product(np, z, np.full((2, 3), 1 / 3), w, v), np.zeros((2, 3)), 1e-12, 1.0)

    class Elements(OwnSoftmax):
        example_axes = None
        _read = lg.losses.Loss._read

    with pytest.raises(ValueError, match="set example_axes = -1"):
        Elements().hessian_product(np, z, z / 3, np.ones((2, 3)), v)


def test_the_page_shows_it_in_thirteen_lines():
    page = (Path(__file__).parents[2] / "docs" / "curvature.md").read_text()
    source = re.search(r"@lg\.record\nclass PseudoHuber.*?\n\n\n", page, re.DOTALL).group()
    assert len([line for line in source.splitlines() if line.strip()]) <= 13
    exec(source, scope := {"lg": lg})
    z, y = np.array([0.3, -2.0]), np.zeros(2)
    for method in ("value", "slope", "curvature"):
        close(getattr(scope["PseudoHuber"](0.5), method)(np, z, y), getattr(PseudoHuber(0.5), method)(np, z, y), 0, 1.0)
