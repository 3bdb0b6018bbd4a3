"""Data in pieces: sums over batches are those of the union, and what cannot be iterated twice is refused."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import FULL

import linop_gn as lg
from linop_gn.curvature.batches import Batch, Stream, as_batch, as_batches

from .cases import Case, Data, Streamed, dense, host, objective, put
from .networks import close, fill, flat

IN_CI_ON_JAX = (
    "test_an_exhausted_iterable_is_an_error_not_the_zero_operator",
    "test_streams_are_checked_on_every_pass",
    "test_streams_are_checked_on_their_first_pass",
)


def operators(case, backend, hold=list):
    """G v, gradient and value."""
    made, params = objective(case, backend, hold=hold), put(backend, case.params())
    G = lg.GGN(made, params)
    gradient, value = made.gradient(params), made.value(params)
    return backend.to_numpy(G @ G.domain.random(1)), host(backend, gradient), host(backend, value)


BOTH = [("numpy", "mean"), ("numpy", "sum"), ("torch", "mean"), ("torch", "sum"), ("jax", "mean")]


@pytest.mark.parametrize(("name", "reduction"), BOTH)
def test_any_split_is_the_union(request, name, reduction):
    if name != "numpy":
        request.getfixturevalue(name)
    backend = lg.load(name)
    case = Case("mlp", "softmax", reduction, 4, "weights", sizes=(7,), ignore=True)
    whole = operators(case, backend)
    for sizes in ((1, 4, 2), (2, 2, 2, 1)) if name != "jax" or FULL else ((1, 4, 2),):
        for hold in (list, Streamed):
            for got, want in zip(operators(case._replace(sizes=sizes), backend, hold), whole, strict=True):
                close(got, want, 1e-13)


def test_ignored_targets_in_uneven_batches_count_once_over_all(torch):
    """Normalising batch by batch is what goes wrong elsewhere; here that would show."""
    case = Case("transformer", "softmax", "mean", 11, sizes=(1, 4, 2), ignore=True)
    want, loss, backend = dense(case).G, lg.losses.CrossEntropy(ignore_index=-100), lg.load("torch")
    params = put(backend, case.params())
    counts = [float((batch.targets != -100).sum()) for batch in case.batches()]
    assert len(set(counts)) > 1
    parts = []
    for batch, count in zip(case.batches(), counts, strict=True):
        data = tuple(put(backend, part) for part in batch[:2])
        if count:
            parts.append(lg.GGN(lg.Objective(case.net.model, loss, data), params).to_dense().numpy())
    close(lg.GGN(objective(case, backend), params).to_dense().numpy(), want, 1e-12)
    naive = sum(parts) / len(parts)
    assert abs(naive - want).max() > 0.05 * abs(want).max()


def test_unweighted_means_of_uneven_batches_would_be_wrong(numpy_backend):
    case = Case("mlp", "squared", "mean", 2, sizes=(1, 6))
    got = operators(case, numpy_backend)[1]
    close(got, dense(case).gradient, 1e-13)
    gradients = []
    for batch in case.batches():
        alone = objective(case, numpy_backend).with_data(batch[:2])
        gradients.append(flat(alone.gradient(case.params())))
    assert abs(sum(gradients) / 2 - got).max() > 0.05 * abs(got).max()
    close((gradients[0] + 6 * gradients[1]) / 7, got, 1e-12)


@pytest.mark.parametrize(("name", "reduction"), BOTH)
def test_a_batch_in_which_nothing_counts_is_harmless_beside_others(request, name, reduction):
    if name != "numpy":
        request.getfixturevalue(name)
    backend = lg.load(name)
    case = Case("mlp", "softmax", reduction, 4, "weights", sizes=(3, 3))
    first, second = case.batches()
    data = [tuple(put(backend, part) for part in b) for b in (first, second._replace(weights=np.zeros(3)))]
    base = objective(case, backend)
    given = {} if backend.calculus is not None else {"jacobian": base.supplied.jacobian}
    alone = lg.Objective(base.model, base.loss, data[0], **given)
    params = put(backend, case.params())
    none = [(data[1]), (data[1])]
    for hold in (list, Streamed):
        made = lg.Objective(base.model, base.loss, hold(data), **given)
        G = lg.GGN(made, params)
        v = G.domain.random(0)
        close(backend.to_numpy(G @ v), backend.to_numpy(lg.GGN(alone, params) @ v), 1e-13)
        close(host(backend, made.value(params)), host(backend, alone.value(params)), 1e-13)
        nothing = lg.Objective(base.model, base.loss, hold(none), **given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            G = lg.GGN(nothing, params)
            for ask, at in ((nothing.value, params), (nothing.gradient, params), (G.__matmul__, v)):
                with pytest.raises(ValueError, match="no example of any batch counts"):
                    ask(at)
    with pytest.raises(ValueError, match="empty batch: none of its 3 examples counts"):
        lg.Objective(base.model, base.loss, [data[1]], **given).value(params)


def test_what_is_one_batch_and_what_are_many():
    x, y, w = np.ones((2, 3)), np.ones(2), np.ones(2)
    assert as_batches(None)[0].inputs is None
    for one in ((x, y), (x, y, w), ((x, x), y), ([x, x], y), ({"x": x}, y), (x, None), [x, y]):
        (batch,) = as_batches(one)
        assert batch.inputs is one[0]
    for many in ([(x, y)] * 3, ((x, y), (x, y, w), (x, y)), [[x, y]] * 3, [Batch(x, y)] * 3):
        assert len(as_batches(many)) == 3
    assert as_batches(Batch(x, y))[0].inputs is x
    assert as_batch([x, y]).targets is y
    assert isinstance(as_batches(Streamed([(x, y)])), Stream)


class Examples:
    """As torch's TensorDataset is."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return index, index


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "no batch: an empty list"),
        ((), ValueError, "no batch: an empty list"),
        (np.ones((2, 3)), TypeError, r"data must be a tuple \(inputs, targets\[, weights\]\) or .*got ndarray"),
        (
            {"x": 1, "y": 2},
            TypeError,
            r"data must be a tuple .*got dict.*as 'labels', and this has \['x', 'y'\]",
        ),
        ([{"x": 1, "label": 2}], TypeError, r"a batch is a tuple .*got dict.*this has \['x', 'label'\]: rename theirs"),
        (Examples(), TypeError, "data must be a tuple .*got Examples. It has examples one by one: .*DataLoader"),
        (3, TypeError, "data must be a tuple .*got int"),
        ([np.ones(2)] * 4, TypeError, r"a batch is a tuple \(inputs, targets\).*got ndarray"),
        ([(np.ones(2),)], TypeError, "a batch is a tuple .*got tuple of 1"),
        ((np.ones(2),), TypeError, "a batch is a tuple .*got tuple of 1"),
        ((1, 2, 3, 4), TypeError, "a batch is a tuple .*got tuple of 4"),
        (((x, x) for x in range(3)), TypeError, "one-shot generator: a second pass over them would see nothing"),
        (zip([1], [2], strict=True), TypeError, "one-shot zip"),
        (map(str, [1]), TypeError, "one-shot map"),
        (iter([(1, 2)]), TypeError, "one-shot list_iterator"),
    ],
)
def test_data_that_are_none(data, error, message):
    with pytest.raises(error, match=message):
        lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), data).value(np.ones(3))


class Exhausted:
    """Iterable in name: every pass goes on with what the first one left."""

    def __init__(self, batches):
        self.left = iter(batches)

    def __iter__(self):
        return self.left


def test_an_exhausted_iterable_is_an_error_not_the_zero_operator(backend):
    case = Case("single", "squared", "mean", 1, sizes=(2, 3))
    made, params = objective(case, backend, hold=Exhausted), put(backend, case.params())
    made.gradient(params)
    G = lg.GGN(made, params)
    with pytest.raises(ValueError, match="gave no batch on this pass; they must be iterable again and again"):
        G @ G.domain.random(0)


def test_items_of_a_stream_that_are_no_batches(numpy_backend):
    made = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), Streamed([np.ones(2)]), jacobian=lambda p, x: x)
    with pytest.raises(TypeError, match=r"a batch is a tuple \(inputs, targets\).*got ndarray"):
        made.value(np.ones(2))


def test_a_data_loader_may_reshuffle(torch):
    data = torch.utils.data
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(11, 3, generator=rng, dtype=torch.float64), torch.randint(0, 3, (11,), generator=rng)
    loader = data.DataLoader(data.TensorDataset(x, y), batch_size=4, shuffle=True, generator=rng)
    case = Case("mlp", "softmax", "mean", 0)
    params = put(lg.load("torch"), case.params())
    before = torch.get_rng_state()
    streamed = lg.Objective(case.net.model, lg.losses.CrossEntropy(), loader)
    assert torch.equal(before, torch.get_rng_state())  # looking at a loader starts none of its workers
    whole = lg.Objective(case.net.model, lg.losses.CrossEntropy(), (x, y))
    v = lg.GGN(whole, params).domain.random(3)
    for kind in (lg.GGN, lg.Hessian, lg.BlockGGN):
        A, B = kind(streamed, params), kind(whole, params)
        assert A.host
        close((A @ v).numpy(), (B @ v).numpy(), 1e-13)
        step = lg.solve(lg.Damped(A, 5.0), v, lg.CG(rtol=1e-10))
        close(step.x.numpy(), lg.solve(lg.Damped(B, 5.0), v, lg.CG(rtol=1e-10)).x.numpy(), 1e-9)
    assert float(streamed.value(params)) == pytest.approx(float(whole.value(params)), rel=1e-13)
    backend = lg.load("torch")
    close(host(backend, streamed.gradient(params)), host(backend, whole.gradient(params)), 1e-13)


class Turning:
    """Batches that are others after the first pass."""

    def __init__(self, first, later):
        self.passes, self.left = [], (first, later)

    def __iter__(self):
        self.passes.append(1)
        yield from self.left[len(self.passes) > 1]


TURNS = {
    "targets": ((lambda x, y, w: (x, y + 3, w)), r"class indices must lie in 0\.\.2"),
    "weights": ((lambda x, y, w: (x, y, -w)), "weights must not be negative"),
    "inputs": ((lambda x, y, w: (np.where(x < 9, np.nan, x), y, w)), "the inputs hold NaN"),
    "shapes": ((lambda x, y, w: (x, y[:-1], w)), "targets must be integers of shape"),
}


@pytest.mark.parametrize("what", TURNS)
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_streams_are_checked_on_every_pass(request, name, what):
    if name != "numpy":
        request.getfixturevalue(name)
    backend, case = lg.load(name), Case("mlp", "softmax", "mean", 4, "weights", sizes=(4, 3))
    made, batches = objective(case, backend), case.batches()
    spoil, message = TURNS[what]
    good, bad = (
        [tuple(put(backend, p) for p in b) for b in held] for held in (batches, [*batches[:1], spoil(*batches[1])])
    )
    given = {} if backend.calculus is not None else {"jacobian": made.supplied.jacobian}
    for ask in (lambda o, p: o.value(p), lambda o, p: o.gradient(p), lambda o, p: lg.GGN(o, p) @ p):
        turning = lg.Objective(made.model, made.loss, Turning(good, bad), **given)
        params = put(backend, case.params())
        assert np.isfinite(float(turning.value(params)))
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                ask(turning, put(backend, fill(case.params(), lambda leaf: leaf + 1.0)))


@settings(max_examples=6)
@given(st.integers(0, 1000))
def test_streams_are_checked_on_their_first_pass(backend, seed):
    case = Case("single", "squared", "mean", seed, sizes=(2, 3))
    batches = case.batches()
    batches[1].targets[0, 0] = np.nan
    made = objective(case, backend)
    held = Streamed([tuple(put(backend, part) for part in Data(*b)[:2]) for b in batches])
    given = {} if backend.calculus is not None else {"jacobian": made.supplied.jacobian}
    broken = lg.Objective(made.model, made.loss, held, **given)
    params = put(backend, case.params())
    for ask in (broken.value, broken.gradient):
        with pytest.raises(ValueError, match="SquaredError: targets must be finite, got nan"):
            ask(params)


def test_operators_over_streams_compose_with_those_in_memory(torch, jax):
    for name in ("torch", "jax"):
        backend = lg.load(name)
        case = Case("single", "squared", "mean", 5, sizes=(2, 2, 1))
        streamed, held = (objective(case, backend, hold=hold) for hold in (Streamed, list))
        params = put(backend, case.params())
        A, B = lg.GGN(streamed, params), lg.GGN(held, params)
        both = A + 2.0 * B + 0.5 * lg.Identity(A.domain)
        assert both.host
        v = A.domain.random(0)
        want = dense(case).G
        close(backend.to_numpy(both @ v), 3 * want @ backend.to_numpy(v) + 0.5 * backend.to_numpy(v), 1e-12)
        step = lg.solve(both, v, lg.CG(rtol=1e-12))
        assert step.status is lg.Status.CONVERGED
        x = np.linalg.solve(3 * want + 0.5 * np.eye(len(want)), backend.to_numpy(v))
        close(backend.to_numpy(step.x), x, 1e-9)


# streams that change


class Loader:
    """Batches of the examples that ``order(pass)`` gives, as ``change(pass, x)`` makes them."""

    def __init__(self, order, change=lambda i, x: x, size=4):
        self.order, self.change, self.size, self.passes = order, change, size, 0

    def __iter__(self):
        i, self.passes = self.passes, self.passes + 1
        x = np.random.default_rng(0).standard_normal((10, 2))
        chosen = x[self.order(i)]
        for start in range(0, len(chosen), self.size):
            part = self.change(i, chosen[start : start + self.size])
            yield part, part.sum(1)


def streamed(loader, **options):
    return lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), loader, jacobian=lambda w, x: x, **options)


def shuffled(count):
    return lambda i: np.random.default_rng(i).permutation(10)[:count]


CHANGING = {
    "dropped": lambda: Loader(shuffled(8)),
    "noise": lambda: Loader(shuffled(10), lambda i, x: x + 0.01 * np.random.default_rng(i).standard_normal(x.shape)),
    "flipped": lambda: Loader(lambda i: np.arange(10), lambda i, x: x[:, :: 1 - 2 * (i % 2)]),
}


@pytest.mark.parametrize("kind", CHANGING)
def test_data_that_change_between_passes_are_refused_on_the_second(kind):
    G = lg.GGN(streamed(CHANGING[kind]()), np.zeros(2))
    G @ np.ones(2)
    with pytest.raises(ValueError, match=r"the data changed between two passes.*drop_last=False.*changing_data=True"):
        lg.solve(lg.Damped(G, 1.0), np.ones(2))
    meant = lg.GGN(streamed(CHANGING[kind](), changing_data=True), np.zeros(2))
    for _ in range(3):
        meant @ np.ones(2)


def test_another_order_is_no_change_and_the_comparison_costs_no_pass():
    loader = Loader(shuffled(10))
    G = lg.GGN(streamed(loader), np.zeros(2))
    products = [G @ np.ones(2) for _ in range(4)]
    assert loader.passes == 4
    np.testing.assert_allclose(products[1:], [products[0]] * 3, rtol=1e-12)
