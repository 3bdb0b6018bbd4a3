"""One linearisation serves all that is asked at given parameters, which are copied; nothing leaks or is written to."""

import contextlib
import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import linop_gn as lg

from .cases import Case, Streamed, dense, host, objective, put
from .networks import close, fill, flat, leaves

CASE = Case("mlp", "softmax", "mean", 6, "weights")
eager = pytest.mark.parametrize("name", ["numpy", "torch"])


class Counted:
    """A model that counts its calls."""

    def __init__(self, model):
        self.model, self.calls = model, 0

    def __call__(self, params, x):
        self.calls += 1
        return self.model(params, x)


def counted(backend, case=CASE, hold=list):
    base = objective(case, backend, hold=hold)
    model = Counted(case.net.model)
    given = {} if backend.calculus is not None else {"jacobian": base.supplied.jacobian}
    data = base.stream.data if base.host else [(b.inputs, b.targets, b.weights) for b in base.batches]
    return lg.Objective(model, base.loss, data, **given), model


def load(request, name):
    if name != "numpy":
        request.getfixturevalue(name)
    return lg.load(name)


@eager
@pytest.mark.parametrize("sizes", [(5,), (3, 2)])
def test_one_call_of_the_model_serves_gradient_value_products_and_a_solve(request, name, sizes):
    backend = load(request, name)
    made, model = counted(backend, CASE._replace(sizes=sizes))
    params = put(backend, CASE.params())
    batches = len(sizes)

    gradient = made.gradient(params)
    value = made.value(params)
    G = lg.GGN(made, params)
    for _ in range(3):
        G @ gradient
    B = lg.BlockGGN(made, params)
    B @ gradient
    step = lg.solve(lg.Damped(G, 0.1), gradient, lg.CG(rtol=1e-8))
    both = made.value_and_gradient(params)
    if batches == 1:
        J, H = lg.Jacobian(made, params), lg.LossHessian(made, params)
        (J.T @ H @ J) @ gradient
        made.outputs(params)
    assert step.products > 3
    assert model.calls == batches
    assert float(both[0]) == float(value)

    # Another point is another pass, and so is the same one as other arrays with other values.
    other = put(backend, fill(CASE.params(), lambda leaf: leaf + 1))
    lg.GGN(made, other) @ gradient
    made.gradient(other)
    assert model.calls == 2 * batches
    # Equal values in other arrays are the same point.
    made.gradient(put(backend, fill(CASE.params(), lambda leaf: leaf + 1)))
    assert model.calls == 2 * batches
    G @ gradient
    assert model.calls == 2 * batches


@eager
def test_an_operator_first_serves_the_gradient_later(request, name):
    backend = load(request, name)
    made, model = counted(backend)
    params = put(backend, CASE.params())
    G = lg.GGN(made, params)
    assert model.calls == 0  # lazily
    G @ G.domain.random(0)
    made.gradient(params), made.value(params), made.outputs(params)
    assert model.calls == 1


def test_a_value_alone_records_nothing_and_a_hessian_brings_its_gradient(torch):
    backend = lg.load("torch")
    made, model = counted(backend)
    params = put(backend, CASE.params())
    made.value(params), made.value(params)
    assert model.calls == 1
    H = lg.Hessian(made, params)
    H @ H.domain.random(0)
    gradient, value = made.gradient(params), made.value(params)
    assert model.calls == 2
    want = dense(CASE)
    close(host(backend, gradient), want.gradient, 1e-12)
    close(host(backend, value), [want.value], 1e-12)
    lg.GGN(made, params) @ H.domain.random(0)
    assert model.calls == 3


def test_a_stream_is_linearised_on_each_pass_and_summed_once(torch):
    backend = lg.load("torch")
    made, model = counted(backend, CASE._replace(sizes=(3, 2)), hold=Streamed)
    params = put(backend, CASE.params())
    made.gradient(params), made.value(params), made.gradient(params)
    assert model.calls == 2
    G = lg.GGN(made, params)
    G @ G.domain.random(0), G @ G.domain.random(1)
    assert model.calls == 10  # of each batch once recorded and once with dual numbers


@pytest.mark.parametrize("hold", [list, Streamed])
def test_parameters_are_copied(backend, hold):
    if "in_place" not in backend.capabilities:
        pytest.skip("arrays cannot be written to")
    case = CASE._replace(sizes=(3, 2))
    made, params = objective(case, backend, hold=hold), put(backend, case.params())
    operators = [lg.GGN(made, params), lg.BlockGGN(made, params)]
    operators += [lg.Hessian(made, params)] if backend.calculus is not None else []
    v = operators[0].domain.random(0)
    before = [backend.to_numpy(A @ v) for A in operators[:1]]
    for leaf in leaves(params):
        leaf[...] = leaf + 1.0
    after = [backend.to_numpy(A @ v) for A in operators]
    close(after[0], before[0], 0.0)
    want = dense(case)
    close(after[0], want.G @ backend.to_numpy(v), 1e-12)
    # Operators that had made no product yet are those of the old parameters, too.
    owner = np.repeat([0, 0, 1, 1], [np.size(leaf) for leaf in leaves(case.params())])
    close(after[1], np.where(owner[:, None] == owner, want.G, 0) @ backend.to_numpy(v), 1e-12)
    # The objective sees the new ones.
    moved = fill(case.params(), lambda leaf: leaf + 1.0)
    close(host(backend, made.gradient(params)), dense(case, moved).gradient, 1e-12)


def test_what_comes_out_may_be_written_to(backend):
    if "in_place" not in backend.capabilities:
        pytest.skip("arrays cannot be written to")
    made, params = objective(CASE, backend), put(backend, CASE.params())
    G = lg.GGN(made, params)
    v = G.domain.random(0)
    first = backend.to_numpy(G @ v)
    for _ in range(2):
        for found in (made.gradient(params), made.outputs(params), made.value(params), G @ v, G.to_dense()):
            for leaf in leaves(found):
                leaf[...] = leaf * 0.0 - 7.0
    want = dense(CASE)
    close(backend.to_numpy(G @ v), first, 0.0)
    close(host(backend, made.gradient(params)), want.gradient, 1e-12)
    close(host(backend, made.value(params)), [want.value], 1e-12)
    close(host(backend, made.outputs(params)), flat(CASE.net.model(CASE.params(), CASE.batches()[0].inputs)), 1e-12)


def test_nothing_read_only_is_written(numpy_backend):
    params = CASE.params()
    batches = [batch._replace(weights=batch.weights) for batch in CASE._replace(sizes=(3, 2)).batches()]
    for array in [*leaves(params), *(part for batch in batches for part in batch)]:
        array.flags.writeable = False
    made = objective(CASE, numpy_backend)
    made = lg.Objective(made.model, made.loss, [tuple(b) for b in batches], jacobian=made.supplied.jacobian)
    G = lg.GGN(made, params)
    v = G.domain.random(0)
    v.flags.writeable = False
    tree = G.domain.unpack(v)
    lg.Damped(G, 1.0) @ v, G @ tree, lg.BlockGGN(made, params) @ v, made.value(params)
    step = lg.solve(lg.Damped(G, 1.0), v)
    assert step.status is lg.Status.CONVERGED
    gradient = made.gradient(params)
    gradient["fc1"]["bias"] += 1.0  # a new array


@contextlib.contextmanager
def counting_references_only():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_a_graph_goes_with_its_last_use_without_waiting_for_the_collector(torch):
    backend = lg.load("torch")
    base = objective(CASE._replace(sizes=(3, 2)), backend)
    params = put(backend, CASE.params())
    with counting_references_only():
        made = base.with_data([(b.inputs, b.targets, b.weights) for b in base.batches])
        made.gradient(params)
        G = lg.GGN(made, params)
        lg.solve(lg.Damped(G, 1.0), G.domain.random(0))
        H = lg.Hessian(made, params)
        H @ G.domain.random(0)
        graphs = [weakref.ref(piece.linearization) for piece in G.point.linearized().pieces]
        graphs += [weakref.ref(curve.linearization) for curve in H.point.curved().pieces]
        del made
        assert all(graph() is not None for graph in graphs)
        del H, G
        assert [graph() for graph in graphs] == [None] * 4

        # An objective keeps the latest point, and lets it go before the next is recorded.
        base.gradient(params)
        (graph, _) = (weakref.ref(piece.linearization) for piece in base.at(params).linearized().pieces)
        assert graph() is not None
        base.value(fill(params, lambda leaf: leaf + 1))
        assert graph() is None


def test_points_are_places_to_make_operators_at(numpy_backend):
    made, params = objective(CASE, numpy_backend), CASE.params()
    point = made.at(params)
    v = point.space.random(0)
    close(lg.GGN(point) @ v, dense(CASE).G @ v, 1e-12)
    assert made.at(params) is point
    with pytest.raises(TypeError, match=r"lg\.GGN was given a point.* and parameters beside it"):
        lg.GGN(point, params)
    with pytest.raises(TypeError, match=r"lg\.GGN needs the parameters to be taken at"):
        lg.GGN(made)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_copies_and_pickles_carry_no_graph_and_find_their_framework_again(request, name):
    backend = load(request, name)
    made, params = objective(CASE._replace(sizes=(3, 2)), backend), put(backend, CASE.params())
    G = lg.GGN(made, params)
    v = G.domain.random(0)
    Gv = backend.to_numpy(G @ v)
    for other in (copy.deepcopy(G), copy.copy(G)):
        assert other.backend is backend
        close(backend.to_numpy(other @ v), Gv, 1e-14)
    step = pickle.loads(pickle.dumps(lg.solve(lg.Damped(G, 1.0), v)))
    assert step.status is lg.Status.CONVERGED
    space = pickle.loads(pickle.dumps(G.domain))
    assert space == G.domain
    assert space.backend is backend
    again = copy.deepcopy(made)
    close(host(backend, again.gradient(params)), host(backend, made.gradient(params)), 1e-14)


def test_equal_leaves_are_the_same_point_without_being_packed(backend, monkeypatch):
    if "compiled" in backend.capabilities or backend.calculus is None:
        pytest.skip("identity tells, or nothing is differentiated here")
    params = {"a": backend.asarray(np.ones(3), "float64"), "b": backend.asarray(np.ones((2, 2)), "float64")}
    objective = lg.Objective.from_residuals(lambda p: p["a"] * p["b"][0, 0])
    point = objective.at(params)
    packs, pack = [], type(backend).pack

    def counted(self, leaves, dtype):
        packs.append(sum(leaf.shape[0] if leaf.shape else 1 for leaf in leaves))
        return pack(self, leaves, dtype)

    monkeypatch.setattr(type(backend), "pack", counted)
    assert objective.at({"a": backend.copy(params["a"]), "b": params["b"]}) is point
    assert not any(packs)
    params["a"][1] = 2.0
    assert objective.at(params) is not point


def test_the_same_leaves_are_the_same_point_at_no_look_at_a_value(backend, monkeypatch):
    """Nobody can write to a compiled framework's arrays, so that their identity tells."""
    if "compiled" not in backend.capabilities:
        pytest.skip("arrays may have been written to")
    reads, read = [], type(backend).read
    monkeypatch.setattr(type(backend), "read", lambda self, tree: reads.append(tree) or read(self, tree))
    x = backend.asarray(np.ones(3), "float32")
    for params, residuals in (x, lambda p: 2 * p), ({"a": x, "b": 2 * x}, lambda p: p["a"] - p["b"]):
        objective = lg.Objective.from_residuals(residuals)
        point = objective.at(params)
        assert objective.at(params) is point
        _, parts, structure = backend.flatten(params)
        assert objective.at(backend.unflatten(structure, [part + 0 for part in parts])) is not point
    assert not reads


def test_a_point_is_named_by_its_parameters(numpy_backend):
    made = lg.Objective.from_residuals(lambda p: p["a"], jacobian=lambda p: {"a": np.eye(3)})
    assert repr(made.at({"a": np.zeros(3)})) == "Point(3 in 1 leaves, numpy float64 on cpu)"
