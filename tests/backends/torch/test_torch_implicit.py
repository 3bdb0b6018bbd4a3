"""Derivatives through solves: against dense closed forms and differences, and by one more solve."""

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from systems import FULL, N, gaussian, in_full, with_spectrum
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import seeds

METHOD = lg.CG(rtol=1e-13)
SPECTRA = ("benign", "spread", "clustered", "tiny", "huge")


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def spectrum(kind, seed):
    values = np.random.default_rng(seed).uniform(0.5, 2.0, N)
    if kind == "spread":
        values = 10.0 ** np.linspace(-2, 2, N)
    if kind == "clustered":
        values = np.array([1.0, 5.0, 5.0 + 1e-9])[np.arange(N) % 3]
    return values * {"tiny": 1e-6, "huge": 1e6}.get(kind, 1.0)


def leaf(host, dtype=torch.float64):
    return torch.tensor(np.asarray(host), dtype=dtype, requires_grad=True)


def solve(matrix, b, damping, layout="flat"):
    if layout == "tree":
        tree = {"bias": b[:2], "weight": b[2:].reshape(5, 1)}
        A = lg.Dense((matrix + matrix.T) / 2, psd=True, domain=lg.Space.of(tree))
        x = lg.solve(lg.Damped(A, damping), tree, METHOD).x
        return torch.cat([x["bias"], x["weight"].reshape(-1)])
    return lg.solve(lg.Damped(lg.Dense((matrix + matrix.T) / 2, psd=True), damping), b, METHOD).x


def dense(matrix, b, damping):
    return torch.linalg.solve((matrix + matrix.T) / 2 + damping * torch.eye(N), b)


def close(got, want, tolerance=1e-8):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


@given(seed=seeds(), kind=st.sampled_from(SPECTRA), relative=st.floats(-3, 2))
@pytest.mark.parametrize("layout", ["flat", "tree", "columns"])
def test_gradients_are_those_of_the_dense_solution(layout, seed, kind, relative):
    values = spectrum(kind, seed)
    b = gaussian(seed, *((N, 2) if layout == "columns" else (N,)))
    data = leaf(with_spectrum(values, seed)), leaf(b), leaf(values.mean() * 10.0**relative)
    u = torch.tensor(gaussian(seed + 1, *b.shape))
    x, wanted = solve(*data, layout), dense(*data)
    close(x, wanted)
    for got, want in zip(torch.autograd.grad(x, data, u), torch.autograd.grad(wanted, data, u), strict=True):
        close(got, want)


def derivatives_are_differences(function, data):
    """First and second ones: along random directions, and each entry with ``FULL``."""
    torch.manual_seed(0)
    for check in (gradcheck, gradgradcheck):
        assert check(function, data, fast_mode=not FULL)


@pytest.mark.parametrize("layout", ["flat", "tree", "columns"])
def test_first_and_second_derivatives_against_differences(layout):
    b = gaussian(1, *((N, 2) if layout == "columns" else (N,)))
    data = leaf(with_spectrum(spectrum("benign", 1), 1)), leaf(b), leaf(0.3)
    derivatives_are_differences(lambda *data: solve(*data, layout), data)


def test_third_derivatives_and_hessians():
    matrix, b = torch.tensor(with_spectrum(spectrum("benign", 2), 2)), torch.tensor(gaussian(2))

    def third(function):
        s = leaf(0.4)
        value = function(matrix * s, b * s.sin(), s).cos().sum()
        for _ in range(3):
            (value,) = torch.autograd.grad(value, s, create_graph=True)
        return value

    close(third(solve), third(dense))


def product_of(v, matrix, shift):
    return matrix.T @ (matrix @ v) + shift * v


U, D = gaussian(4, N, 3), np.abs(gaussian(5)) + 0.5
OPERATORS = {
    "diagonal": (lambda d: lg.Diagonal(d, psd=True), torch.diag, [D]),
    "low rank": (
        lambda u, m, c: lg.Damped(lg.LowRank(u, m, psd=True), c),
        lambda u, m, c: u @ torch.diag(m) @ u.T + c * torch.eye(N),
        [U, np.array([1.0, 2.0, 0.5]), 0.4],
    ),
    "sum, product and multiple": (
        lambda u, d, c: c * (lambda J: J @ J.T)(lg.Dense(u)) + lg.Diagonal(d, psd=True),
        lambda u, d, c: c * u @ u.T + torch.diag(d),
        [U, D, 1.7],
    ),
    "product that reads the same from both ends": (
        lambda u, d: (lambda J: J.T @ lg.Diagonal(d, psd=True) @ J)(lg.Dense(u)),
        lambda u, d: u.T @ torch.diag(d) @ u,
        [gaussian(6, N, N) + 3 * np.eye(N), D],
    ),
    "function": (
        lambda u, s: lg.FunctionOperator(product_of, lg.Space.flat(N, u[0]), args=(u, s), psd=True),
        lambda u, s: u.T @ u + s * torch.eye(N),
        [gaussian(7, N, N), 0.5],
    ),
    "blocks": (
        lambda d, m: lg.BlockDiagonal((lg.Diagonal(d[:4], psd=True), lg.Dense(m @ m.T, psd=True))),
        lambda d, m: torch.block_diag(torch.diag(d[:4]), m @ m.T),
        [D, gaussian(8, 3, 3) + 3 * np.eye(3)],
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("shape", [(N,), (N, 2)])
def test_the_data_of_every_operator(name, shape):
    make, matrix, data = OPERATORS[name]
    data, b = [leaf(x) for x in data], leaf(gaussian(9, *shape))
    x, wanted = lg.solve(make(*data), b, METHOD).x, torch.linalg.solve(matrix(*data), b)
    got, want = (torch.autograd.grad(y.sin().sum(), (b, *data)) for y in (x, wanted))
    for ours, expected in zip(got, want, strict=True):
        close(ours, expected, 1e-9)


# curvature

X, Y = gaussian(10, 6, 3), np.random.default_rng(11).integers(0, 2, 6)


def network(p, x):
    return torch.tanh(x @ p["w"]) @ p["v"]


def objective(inputs=None, loss=None):
    data = torch.tensor(X) if inputs is None else inputs, torch.tensor(Y)
    return lg.Objective(network, loss or lg.losses.CrossEntropy(), data)


def curvature_matrix(kind, w, v, inputs):
    def outputs(q):
        return network({"w": q[:12].reshape(3, 4), "v": q[12:].reshape(4, 2)}, inputs)

    q = torch.cat([w.reshape(-1), v.reshape(-1)])
    if kind is lg.Hessian:
        loss = lambda q: nn.functional.cross_entropy(outputs(q), torch.tensor(Y))  # noqa: E731
        return torch.autograd.functional.hessian(loss, q, create_graph=True)
    J = torch.autograd.functional.jacobian(lambda q: outputs(q).reshape(-1), q, create_graph=True)
    blocks = [(torch.diag(r) - torch.outer(r, r)) / 6 for r in torch.softmax(outputs(q), 1)]
    G = J.T @ torch.block_diag(*blocks) @ J
    return torch.block_diag(G[:12, :12], G[12:, 12:]) if kind is lg.BlockGGN else G


def curved_step(kind, w, v, damping, inputs, g=None, made=None):
    A = kind(made or objective(inputs), {"w": w, "v": v})
    g = torch.ones(20) if g is None else g
    return lg.solve(lg.Damped(A, damping), g, METHOD).x


@pytest.mark.parametrize("kind", [lg.GGN, lg.Hessian, lg.BlockGGN], ids=lambda kind: kind.__name__)
def test_curvature_at_parameters_and_data_that_are_differentiated(kind):
    data = leaf(gaussian(12, 3, 4)), leaf(gaussian(13, 4, 2)), leaf(3.0 if kind is lg.Hessian else 0.1), leaf(X)

    def oracle(w, v, damping, inputs):
        return torch.linalg.solve(curvature_matrix(kind, w, v, inputs) + damping * torch.eye(20), torch.ones(20))

    both = curved_step(kind, *data), oracle(*data)
    first = [torch.autograd.grad(x.sin().sum(), data, create_graph=True) for x in both]
    for got, want in zip(*first, strict=True):
        close(got, want, 1e-7)
    second = [torch.autograd.grad(sum(g.cos().sum() for g in gradients), data) for gradients in first]
    for got, want in zip(*second, strict=True):
        close(got, want, 1e-6)


def test_a_loss_without_closed_forms_and_supplied_derivatives():
    data = leaf(gaussian(14, 3, 4)), leaf(gaussian(15, 4, 2)), leaf(0.2), leaf(X)

    def by_hand(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    want = torch.autograd.grad(curved_step(lg.GGN, *data).sum(), data)
    made = objective(data[3], lg.losses.FromFunction(by_hand))
    for got, expected in zip(torch.autograd.grad(curved_step(lg.GGN, *data, made=made).sum(), data), want, strict=True):
        close(got, expected, 1e-9)
    w, s, t = leaf([1.0, 2.0]), leaf(0.1), torch.linspace(0, 1, 5)
    fit = lg.Objective.from_residuals(
        lambda p: torch.exp(p[0] * t) * p[1],
        jacobian=lambda p: torch.stack([t * torch.exp(p[0] * t) * p[1], torch.exp(p[0] * t)], dim=1),
    )
    J = torch.stack([t * torch.exp(w[0] * t) * w[1], torch.exp(w[0] * t)], dim=1)
    wanted = torch.linalg.solve(J.T @ J + s * torch.eye(2), torch.ones(2))
    x = lg.solve(lg.Damped(lg.GGN(fit, w), s), torch.ones(2), METHOD).x
    for got, expected in zip(*(torch.autograd.grad(y.cos().sum(), (w, s)) for y in (x, wanted)), strict=True):
        close(got, expected, 1e-9)


def test_parameters_of_a_module_ask_for_nothing_by_themselves():
    module = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    made = lg.Objective(module, lg.losses.CrossEntropy(), (torch.tensor(X), torch.tensor(Y)))
    gradient, G = made.gradient(module), lg.GGN(made, module)
    assert G.point is made.at(dict(module.named_parameters()))
    step = lg.solve(lg.Damped(G, 0.1), gradient, METHOD)
    assert not any(x.requires_grad for x in step.x.values())
    # But for the sake of a damping there is a graph, and they are in it.
    damping = leaf(0.1)
    x = lg.solve(lg.Damped(G, damping), gradient, METHOD).x
    loss = sum(leaf.sin().sum() for leaf in x.values())
    got = torch.autograd.grad(loss, [damping, *module.parameters()])
    copies = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    x = lg.solve(lg.Damped(lg.GGN(made, copies), damping), gradient, METHOD).x
    want = torch.autograd.grad(sum(leaf.sin().sum() for leaf in x.values()), [damping, *copies.values()])
    for ours, expected in zip(got, want, strict=True):
        close(ours, expected, 1e-9)


def test_derivatives_go_to_the_parameters_that_were_given_not_to_equal_ones():
    made, host = objective(), (gaussian(12, 3, 4), gaussian(13, 4, 2))
    calls = []
    forward = made.model
    made = lg.Objective(lambda p, x: calls.append(1) or forward(p, x), made.loss, (torch.tensor(X), torch.tensor(Y)))
    first, second = ([leaf(h) for h in host] for _ in range(2))
    x = curved_step(lg.GGN, *first, 0.1, None, made=made)
    before = len(calls)
    plain = curved_step(lg.GGN, *(p.detach() for p in first), 0.1, None, made=made)
    other = curved_step(lg.GGN, *second, 0.1, None, made=made)
    assert len(calls) == before  # linearised once for all of them
    assert not plain.requires_grad
    for graph, own, not_own in ((x, first, second), (other, second, first)):
        gradients = torch.autograd.grad(graph.sum(), own + not_own, allow_unused=True)
        assert [g is None for g in gradients] == [False, False, True, True]


def test_a_right_hand_side_may_be_written_to_once_the_solution_is_there():
    """A tree whose leaves lie in a row is not copied for the solve; its derivatives come later."""
    made, host = objective(), (gaussian(12, 3, 4), gaussian(13, 4, 2))
    found = []
    for writes in (False, True):
        damping, params = leaf(0.1), {"w": torch.tensor(host[0]), "v": torch.tensor(host[1])}
        b = made.gradient(params)
        before = {name: part.clone() for name, part in b.items()}
        x = lg.solve(lg.Damped(lg.GGN(made, params), damping), b, lg.GramSolve(rtol=1e-12)).x
        assert all(torch.equal(b[name], before[name]) for name in b)
        if writes:
            for part in b.values():
                part.zero_()
        found.append(torch.autograd.grad(sum(part.sum() for part in x.values()), damping)[0])
    assert found[0] != 0
    close(found[1], found[0], 1e-12)


def test_points_at_equal_values_share_what_either_linearises():
    forward, calls = objective().model, []
    data = torch.tensor(X), torch.tensor(Y)
    made = lg.Objective(lambda p, x: calls.append(1) or forward(p, x), lg.losses.CrossEntropy(), data)
    params = {"w": leaf(gaussian(12, 3, 4)), "v": leaf(gaussian(13, 4, 2))}
    G, damping, g = lg.GGN(made, params), leaf(0.1), torch.ones(20)
    with torch.no_grad():
        made.gradient(params)  # at the point of an operator that nobody differentiates
        constant = lg.GGN(made, params)
    assert constant.point is not G.point
    assert constant.point.linearized() is G.point.linearized()
    assert len(calls) == 1
    wanted = list(params.values())
    for A, nothing in ((G, False), (constant, True)):
        gradients = torch.autograd.grad(lg.solve(lg.Damped(A, damping), g).x.sum(), wanted, allow_unused=True)
        assert [x is None for x in gradients] == [nothing] * 2


# solvers


def symmetric(matrix):
    return lg.Dense((matrix + matrix.T) / 2, symmetric=True)


SOLVERS = {
    "MINRES": (symmetric, lg.MINRES(rtol=1e-13)),
    "Cholesky": (lambda matrix: lg.Dense(matrix @ matrix.T + torch.eye(N), psd=True), lg.Cholesky()),
    "LU": (lg.Dense, lg.LU()),
    "Eigh": (symmetric, lg.Eigh()),
    "LSMR": (lg.Dense, lg.LSMR(atol=1e-13, btol=1e-13, conlim=None)),
    "Blockwise": (
        lambda matrix: lg.BlockDiagonal((lg.Diagonal(matrix[0, :3] ** 2 + 1), lg.Diagonal(matrix[1, 3:] ** 2 + 1))),
        lg.Blockwise(lg.CG(rtol=1e-13)),
    ),
}


DIRECT = ("Cholesky", "Eigh")  # as LU


@pytest.mark.parametrize("name", [pytest.param(name, marks=in_full if name in DIRECT else ()) for name in SOLVERS])
def test_every_solver_of_systems(name):
    make, method = SOLVERS[name]
    data = leaf(gaussian(28, N, N) + 4 * np.eye(N)), leaf(gaussian(29))
    derivatives_are_differences(lambda matrix, b: lg.solve(make(matrix), b, method).x, data)


@pytest.mark.parametrize("method", [lg.LSMR, lg.LSQR])
def test_least_squares_with_damping(method):
    data = leaf(gaussian(30, 9, 4)), leaf(gaussian(31, 9)), leaf(0.3)

    def x(A, b, damping):
        return lg.solve(lg.Dense(A), b, method(damping=damping, atol=1e-13, btol=1e-13)).x

    derivatives_are_differences(x, data)


@pytest.mark.parametrize("method", [lg.LSMR, lg.LSQR])
@pytest.mark.parametrize("sizes", [(3, 5, 3), (5, 4, 2), (4, 6, 2), (6, 3, 3)], ids=str)
def test_solutions_of_least_norm_for_every_shape_and_rank(method, sizes):
    m, n, rank = sizes
    data = leaf(gaussian(40, m, rank)), leaf(gaussian(41, rank, n)), leaf(gaussian(42, m))

    def ours(L, R, b):
        return lg.solve(lg.Dense(L @ R), b, method(atol=1e-13, btol=1e-13, conlim=None)).x

    def oracle(L, R, b):  # A^+ b for A = L R
        return R.T @ torch.linalg.solve(R @ R.T, torch.linalg.solve(L.T @ L, L.T @ b))

    both = ours(*data), oracle(*data)
    first = [torch.autograd.grad(x.sin().sum(), data, create_graph=True) for x in both]
    second = [torch.autograd.grad(sum(g.cos().sum() for g in gradients), data) for gradients in first]
    for got, want in zip(*(a + b for a, b in zip(first, second, strict=True)), strict=True):
        close(got, want, 1e-7)


def test_an_array_of_no_damping_is_no_silent_wrong_number():
    A, b = leaf([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]), torch.tensor([1.0, 2.0])
    plain, zero = (lg.solve(lg.Dense(A), b, lg.LSMR(damping=d, atol=1e-12, btol=1e-12)).x for d in (0.0, leaf(0.0)))
    dA = torch.autograd.grad(plain, A, torch.tensor([0.0, 0.0, 1.0]))[0]
    close(dA[0, 2] + dA[1, 0], torch.tensor(10 / 9))
    with pytest.raises(NotImplementedError, match="damping=None for those of the solution of least norm"):
        zero.sum().backward()


def test_a_singular_system_has_a_solution_but_no_derivative():
    matrix, b = leaf(np.diag([1.0, 2.0, 0.0])), leaf([1.0, 2.0, 3.0])
    solution = lg.solve(lg.Dense(matrix, symmetric=True), b, lg.Eigh())
    assert solution.status is Status.LEAST_SQUARES
    with pytest.warns(RuntimeWarning, match="LEAST_SQUARES"):
        solution.x.sum().backward()
    assert matrix.grad.isnan().any()


# when nobody asks


def test_without_a_reason_there_is_no_graph():
    matrix, b = torch.tensor(with_spectrum(spectrum("benign", 3), 3)), torch.tensor(gaussian(16))
    assert not solve(matrix, b, 0.1).requires_grad
    live = matrix.clone().requires_grad_(), b.clone().requires_grad_(), leaf(0.1)
    with torch.no_grad():
        assert not solve(*live).requires_grad
    assert not solve(*(t.detach() for t in live)).requires_grad
    assert solve(matrix, live[1], 0.1).requires_grad
    torch.testing.assert_close(solve(*live).detach(), solve(matrix, b, 0.1), rtol=0, atol=0)


def test_neither_starting_point_nor_preconditioner_has_a_derivative():
    matrix, b = leaf(with_spectrum(spectrum("spread", 4), 4)), leaf(gaussian(17))
    start, inverse = leaf(gaussian(18)), leaf(1 / np.diag(matrix.detach()))
    method = lg.CG(rtol=1e-13, preconditioner=lg.Diagonal(inverse, psd=True))
    x = lg.solve(lg.Dense(matrix, psd=True), b, method, x0=start).x
    got = torch.autograd.grad(x.square().sum(), (matrix, b, start, inverse), allow_unused=True)
    want = torch.autograd.grad(torch.linalg.solve(matrix, b).square().sum(), (matrix, b))
    close(got[0], want[0])
    close(got[1], want[1])
    assert got[2] is got[3] is None
    made = lg.CG(rtol=1e-13, preconditioner=lambda A: lg.Diagonal(1 / torch.diag(A.matrix), psd=True))
    x = lg.solve(lg.Dense(matrix, psd=True), b, made).x
    close(torch.autograd.grad(x.square().sum(), matrix)[0], want[0])
    plain = torch.tensor(gaussian(17))
    assert not lg.solve(lg.Dense(matrix.detach(), psd=True), plain, method, x0=start).x.requires_grad


def test_watchers_see_the_run_and_not_the_solve_for_the_gradient():
    matrix, b = torch.tensor(with_spectrum(spectrum("benign", 5), 5)), leaf(gaussian(19))
    record = lg.Recorder()
    solution = lg.solve(lg.Dense(matrix, psd=True), b, METHOD, watch=[record])
    seen = len(record.history["residual"])
    solution.x.sum().backward()
    assert len(record.history["residual"]) == seen == solution.steps + 1
    close(b.grad, torch.linalg.solve(matrix, torch.ones(N)))


# what it costs


def counted(calls, matrix):
    def product(v, matrix):
        calls.append(torch.is_grad_enabled())
        return matrix @ v

    return lg.FunctionOperator(product, lg.Space.flat(N, matrix[0]), args=(matrix,), psd=True)


def test_a_gradient_takes_one_more_solve_and_one_product():
    matrix, b, u = leaf(with_spectrum(spectrum("benign", 6), 6)), leaf(gaussian(20)), torch.tensor(gaussian(21))
    calls = []
    solution = lg.solve(counted(calls, matrix), b, lg.CG(rtol=1e-6))
    assert calls == [False] * solution.products
    calls.clear()
    solution.x.backward(u)
    backward = lg.solve(lg.Dense(matrix.detach(), psd=True), u, lg.CG(rtol=1e-6))
    assert calls == [False] * backward.products + [True]


def nodes(tensor):
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return len(seen)


def test_no_derivative_goes_through_the_loop_and_nothing_is_kept_alive():
    data = leaf(with_spectrum(spectrum("spread", 7), 7)), leaf(gaussian(22)), leaf(0.1)
    few, many = (lg.solve(lg.Damped(lg.Dense(data[0]), data[2]), data[1], lg.CG(steps=steps)).x for steps in (1, 500))
    assert nodes(few) == nodes(many) == 4  # the solution and three leaves
    A = lg.Diagonal(torch.tensor(D), psd=True)
    x = lg.solve(A, data[1], METHOD).x
    gone = weakref.ref(x), weakref.ref(A)
    gc.disable()  # no cycles: all goes with the last reference
    try:
        del x, A
        assert [r() for r in gone] == [None, None]
    finally:
        gc.enable()


# what can go wrong


def test_a_derivative_that_is_not_one_is_nan_with_a_warning():
    d, b = torch.tensor([1.0, 2.0, 3.0]), leaf([1.0, 1.0, 1.0])

    def pull(d, b, u, limit=20):
        x = lg.solve(lg.Diagonal(d, psd=False), b, lg.CG(rtol=1e-10, max_steps=limit)).x
        return torch.autograd.grad(x, b, torch.tensor(u))[0]

    close(pull(d, b, [1.0, 1.0, 1.0]), 1 / d)
    with pytest.warns(RuntimeWarning, match="derivative of a solution is NaN.*NEGATIVE_CURVATURE"):
        assert pull(torch.tensor([1.0, -2.0, 3.0]), b, [1.0, 1.0, 1.0]).isnan().all()
    e = leaf([1.0, 0.0, 0.0])
    with pytest.warns(RuntimeWarning, match=r"MAX_STEPS: .*raise max_steps"):
        assert pull(d, e, [1.0, 1.0, 1.0], 1).isnan().all()
    close(pull(d, e, [1.0, 0.0, 0.0], 1), torch.tensor([1.0, 0.0, 0.0]))
    assert not pull(d, b, [0.0, 0.0, 0.0], 1).any()  # nobody asked


def test_columns_fail_each_for_itself():
    d, b = torch.tensor([1.0, -2.0, 3.0]), leaf([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    solution = lg.solve(lg.Diagonal(d, psd=False), b, lg.CG(rtol=1e-10))
    assert solution.status == [Status.CONVERGED, Status.NEGATIVE_CURVATURE]
    u = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    with pytest.warns(RuntimeWarning, match="NEGATIVE_CURVATURE"):
        (gradient,) = torch.autograd.grad(solution.x, b, u)
    assert gradient[:, 0].tolist() == [1.0, 0.0, 0.0]
    assert gradient[:, 1].isnan().all()


@pytest.mark.parametrize("method", [lg.CG(rtol=0.0, atol=1e-6), lg.CG(stop=lg.MaxResidual(1e-6))])
@pytest.mark.parametrize("b", [np.ones(3), np.zeros(3)], ids=["ones", "zeros"])
def test_an_absolute_tolerance_belongs_to_the_right_hand_side_alone(method, b):
    d, b = torch.tensor([1.0, 2.0, 3.0]), leaf(b)
    (gradient,) = torch.autograd.grad(lg.solve(lg.Diagonal(d), b, method).x, b, torch.full((3,), 1e-30))
    close(gradient, 1e-30 / d, 1e-5)


def test_a_tensor_that_an_operator_closes_over_is_refused():
    matrix, b = leaf(with_spectrum(spectrum("benign", 8), 8)), leaf(gaussian(23))
    A = lg.FunctionOperator(lambda v: matrix @ v, lg.Space.flat(N, b.detach()), psd=True)
    x = lg.solve(A, b, METHOD).x
    with pytest.raises(NotImplementedError, match=r"uses a tensor of shape \(7, 7\).*args=\(tensor,\)"):
        x.sum().backward()


def test_a_tensor_that_an_operator_alone_closes_over_is_warned_of():
    matrix, b = leaf(with_spectrum(spectrum("benign", 8), 8)), leaf(gaussian(23)).detach()
    flat = lg.Space.flat(N, b)
    A = lg.FunctionOperator(lambda v: matrix @ v, flat, psd=True)
    trees = lg.FunctionOperator(lambda v: {"x": matrix @ v["x"]}, lg.Space.of({"x": b}), psd=True, on="tree")
    for operator in (A, lg.Damped(A, 0.1), A + A, trees):
        for method in (METHOD, lg.MINRES(rtol=1e-6), lg.Cholesky()):
            with pytest.warns(RuntimeWarning, match=r"uses a tensor of shape \(7, 7\).*args=\(tensor,\)"):
                assert not x_of(lg.solve(operator, {"x": b} if operator is trees else b, method)).requires_grad
    module = torch.nn.Linear(N, N, bias=False, dtype=b.dtype)  # whose parameters nobody asked for

    def product(v):
        return module.weight.T @ (module.weight @ v) + v

    inverse = lg.FunctionOperator(lambda v: v + 0.0 * matrix.sum(), flat, psd=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lg.solve(lg.FunctionOperator(product, flat, psd=True), b, METHOD)
        lg.solve(lg.FunctionOperator(lambda v: matrix.detach() @ v, flat, psd=True), b, METHOD)
        lg.solve(lg.Dense(matrix.detach(), psd=True), b, lg.CG(rtol=1e-6, preconditioner=inverse))
        assert lg.solve(lg.FunctionOperator(lambda v, m: m @ v, flat, args=(matrix,), psd=True), b).x.requires_grad
        with torch.no_grad():
            lg.solve(A, b, METHOD)


def x_of(solution):
    return solution.x["x"] if isinstance(solution.x, dict) else solution.x


def test_data_changed_in_place_are_noticed():
    matrix, b = leaf(with_spectrum(spectrum("benign", 9), 9)), leaf(gaussian(24))
    x = lg.solve(lg.Dense(matrix, psd=True), b, METHOD).x
    with torch.no_grad():
        matrix.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_single_precision():
    matrix = leaf(with_spectrum(spectrum("benign", 10), 10), torch.float32)
    b, damping = leaf(gaussian(25), torch.float32), leaf(0.1, torch.float32)
    x = lg.solve(lg.Damped(lg.Dense(matrix, psd=True), damping), b, lg.CG(rtol=1e-6)).x
    got = torch.autograd.grad(x.sum(), (matrix, b, damping))
    wide = matrix.detach().double() + 0.1 * torch.eye(N)
    w = torch.linalg.solve(wide, torch.ones(N))
    assert {g.dtype for g in got} == {torch.float32}
    torch.testing.assert_close(got[1].double(), w, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        got[2].double(), -w @ torch.linalg.solve(wide, b.detach().double()), rtol=1e-3, atol=1e-4
    )


# methods whose answers have none


@lg.record
class NoSystem(lg.CG):
    """A method whose answer solves no linear system."""

    solves_system = False


def test_a_method_that_solves_no_system_says_so():
    with pytest.raises(NotImplementedError, match="the answer of NoSystem is not the solution of a linear system"):
        lg.solve(lg.Dense(torch.eye(N)), leaf(np.ones(N)), NoSystem())
