"""Objectives whose data are shared out over processes, against one objective of all data."""

import copy

import numpy as np
import pytest
from processes import OfThreads, on_threads, share

import linop_gn as lg

EXACT = {"rtol": 1e-12, "atol": 1e-13}


@pytest.fixture(params=["numpy", "torch"])
def eager(request):
    if request.param == "torch":
        pytest.importorskip("torch")
    return lg.load(request.param)


def model(params, x):
    xp = lg.namespace(x)
    return xp.tanh(x @ params["w"]) @ params["v"] + params["c"]


def problem(ops, rows=8, seed=0):
    """Parameters, inputs, targets, weights in float64; the model is differentiated by autograd where that is needed."""
    rng = np.random.default_rng(seed)

    def place(x):
        return ops.asarray(x, "float64")

    params = {"w": rng.standard_normal((3, 4)), "v": rng.standard_normal((4, 2)), "c": rng.standard_normal(2)}
    data = rng.standard_normal((rows, 3)), rng.standard_normal((rows, 2)), rng.uniform(0.5, 2.0, rows)
    return {name: place(x) for name, x in params.items()}, *map(place, data)


def objective(ops, data, **options):
    loss = options.pop("loss", lg.losses.SquaredError())
    if ops.calculus is None:
        pytest.importorskip("autograd")
        options["derivatives"] = "autograd"
    return lg.Objective(model, loss, data, **options)


def host(ops, x):
    return {k: host(ops, v) for k, v in x.items()} if isinstance(x, dict) else np.asarray(ops.to_numpy(x))


def close(ops, found, wanted):
    found, wanted = host(ops, found), host(ops, wanted)
    if isinstance(found, dict):
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], **EXACT)
    else:
        np.testing.assert_allclose(found, wanted, **EXACT)


OPERATORS = {
    "GGN": lg.GGN,
    "Hessian": lg.Hessian,
    "BlockGGN": lambda f, p: lg.BlockGGN(f, p, blocks="leaf"),
    "EmpiricalFisher": lg.EmpiricalFisher,
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("l2", [None, 0.3])
def test_uneven_shares_with_weights_are_the_whole(eager, reduction, l2):
    """5 + 3 rows, where a mean of means is 25 % off, one of the shares in two batches."""
    ops, loss = eager, lg.losses.SquaredError(reduction=reduction)
    params, *data = problem(ops)
    whole = objective(ops, tuple(data), loss=loss, l2=l2)
    V = ops.asarray(np.random.default_rng(1).standard_normal((22, 3)), "float64")

    def work(processes):
        mine = share(2, processes.rank, *data, cuts=[0, 5, 8])
        mine = [share(2, i, *mine, cuts=[0, 2, 5]) for i in range(2)] if processes.rank == 0 else mine
        fit = objective(ops, mine, loss=loss, l2=l2, reduce=processes)
        value, gradient = fit.value_and_gradient(params)
        made = [value, gradient, fit.value({k: 2 * v for k, v in params.items()})]
        return made, {name: kind(fit, params) @ V for name, kind in OPERATORS.items()}

    for (value, gradient, other), products in on_threads(2, work):
        close(ops, value, whole.value(params))
        close(ops, other, whole.value({k: 2 * v for k, v in params.items()}))
        close(ops, gradient, whole.gradient(params))
        for name, kind in OPERATORS.items():
            close(ops, products[name], kind(whole, params) @ V)


def test_means_of_means_would_be_wrong(eager):
    ops = eager
    params, x, y, _ = problem(ops)
    halves = [objective(ops, share(2, r, x, y, cuts=[0, 5, 8])).gradient(params) for r in range(2)]
    mean = host(ops, halves[0])["w"] / 2 + host(ops, halves[1])["w"] / 2
    assert abs(mean / host(ops, objective(ops, (x, y)).gradient(params)["w"]) - 1).max() > 0.05


def test_a_share_that_counts_for_nothing_or_has_no_row_is_right(eager):
    ops = eager
    params, x, y, w = problem(ops)
    w = ops.asarray(np.where(np.arange(8) < 5, host(ops, w), 0.0), "float64")
    whole = objective(ops, (x[:5], y[:5], w[:5]))

    def work(processes):
        fit = objective(ops, share(3, processes.rank, x, y, w, cuts=[0, 5, 8, 8]), reduce=processes)
        return fit.gradient(params), lg.GGN(fit, params) @ params

    for gradient, product in on_threads(3, work):
        close(ops, gradient, whole.gradient(params))
        close(ops, product, lg.GGN(whole, params) @ params)


def test_data_of_which_no_example_counts_are_refused_everywhere(numpy_backend):
    ops = numpy_backend
    params, x, y, w = problem(ops)
    with pytest.raises(ValueError, match="no example of any batch counts"):
        on_threads(2, lambda p: objective(ops, share(2, p.rank, x, y, 0 * w), reduce=p).value(params))


def test_thirteen_rows_on_four_with_masks_and_classes(eager):
    ops, rng = eager, np.random.default_rng(0)
    params, x, *_ = problem(ops, rows=13)
    y = ops.asarray(rng.integers(0, 2, 13), "int64")
    y[3:8] = -100
    loss = lg.losses.CrossEntropy(ignore_index=-100, weight=ops.asarray([1.0, 3.0], "float64"))
    whole = objective(ops, (x, y), loss=loss)

    def work(processes):
        fit = objective(ops, share(4, processes.rank, x, y), loss=loss, reduce=processes)
        return fit.value(params), fit.gradient(params), lg.GGN(fit, params) @ params

    for value, gradient, product in on_threads(4, work):
        close(ops, value, whole.value(params))
        close(ops, gradient, whole.gradient(params))
        close(ops, product, lg.GGN(whole, params) @ params)


def test_streams_are_reduced_once_after_a_pass(eager):
    ops = eager
    params, *data = problem(ops, rows=9)
    whole = objective(ops, tuple(data))

    class Loader:
        def __init__(self, batches):
            self.batches = batches

        def __iter__(self):
            return iter(self.batches)

    def work(processes):
        mine = share(2, processes.rank, *data, cuts=[0, 6, 9])
        fit = objective(ops, Loader([share(3, i, *mine) for i in range(3)]), reduce=processes)
        gradient, sent = fit.gradient(params), len(processes.sent)
        return gradient, lg.GGN(fit, params) @ params, sent, len(processes.sent)

    for gradient, product, first, both in on_threads(2, work):
        assert (first, both) == (2, 3)
        close(ops, gradient, whole.gradient(params))
        close(ops, product, lg.GGN(whole, params) @ params)


def test_functions_and_residuals_are_summed(numpy_backend):
    t = np.linspace(0.0, 1.0, 8)
    f, g, h = lambda p, t: ((p * t) ** 2).sum(), lambda p, t: 2 * p * (t**2).sum(), lambda p, t, v: 2 * (t**2).sum() * v
    whole = lg.Objective.from_function(f, t, gradient=g, hvp=h)
    p = np.array([1.5])

    def work(processes):
        (mine,) = share(2, processes.rank, t, cuts=[0, 6, 8])
        fit = lg.Objective.from_function(f, mine, gradient=g, hvp=h, reduce=processes)
        line = lg.Objective.from_residuals(
            lambda p, t: t * p[0] - 1.0, mine, jacobian=lambda p, t: t[:, None], reduce=processes
        )
        return fit.value(p), fit.gradient(p), lg.Hessian(fit, p) @ p, lg.GGN(line, p) @ p, line.value(p)

    for value, gradient, product, square, half in on_threads(2, work):
        np.testing.assert_allclose(value, whole.value(p), **EXACT)
        np.testing.assert_allclose(gradient, whole.gradient(p), **EXACT)
        np.testing.assert_allclose(product, lg.Hessian(whole, p) @ p, **EXACT)
        np.testing.assert_allclose(square, (t @ t) * p, **EXACT)
        np.testing.assert_allclose(half, ((t * p[0] - 1.0) ** 2).sum() / 2, **EXACT)


# what is sent


def test_arrays_of_all_shapes_and_dtypes_travel_as_one(backend):
    if "compiled" in backend.capabilities:
        pytest.skip("nothing is called between its products")
    ops, shapes, dtypes = backend, [(), (2, 3), (4,)], ["float64", "float32", "float64"]

    def work(processes):
        numbers = [np.full(shape, 1.0 + processes.rank) for shape in shapes]
        sums = processes.sum(
            ops, [ops.asarray(*pair) for pair in zip(numbers, dtypes, strict=True)], {"one": 2**32 - 1, "other": 7}
        )
        alone = processes.sum(ops, [ops.asarray(numbers[1], "float32")])
        counted = processes.count(ops, sums[2], 2.5), processes.any(ops, sums[2], processes.rank == 1)
        return sums, alone, processes.sent, counted

    for sums, alone, sent, counted in on_threads(3, work):
        for made, shape, dtype in zip([*sums, *alone], [*shapes, shapes[1]], [*dtypes, dtypes[1]], strict=True):
            assert ops.describe(made)[:2] == (shape, dtype)
            np.testing.assert_array_equal(ops.to_numpy(made), np.full(shape, 6.0))
        assert sent == [1 + 6 + 4 + 1 + 2 * 16, 6, 1, 1]
        assert counted == (7.5, True)


def test_marks_tell_what_is_not_the_same_from_sums_alone(numpy_backend):
    like = np.zeros(1)

    def work(processes, marks):
        for i, mark in enumerate(marks):
            processes.require_same(numpy_backend, like, mark[processes.rank], f"number {i}")

    on_threads(3, lambda processes: work(processes, [(5, 5, 5), (0, 0, 0), (2**32 - 1,) * 3]))
    for other in [(1, 2, 3), (0, 0, 1), (2**31, 2**31, 0), (7, 7, 7 + 2**28)]:
        with pytest.raises(ValueError, match="number 1"):
            on_threads(3, lambda processes, other=other: work(processes, [(5, 5, 5), other]))


def test_collectives_are_counted(eager):
    """One a product, whatever the columns; one for value, gradient and weight; none more a CG step."""
    ops, n = eager, 22
    params, *data = problem(ops)
    V = ops.asarray(np.ones((n, 5)), "float64")

    def work(processes):
        sent, found = processes.sent, {}

        def counted(name, ask):
            before = len(sent)
            ask()
            found[name] = sent[before:]

        fit = objective(ops, [share(4, 2 * processes.rank + i, *data) for i in range(2)], reduce=processes)
        counted("first", lambda: fit.value_and_gradient(params))
        counted("value", lambda: fit.value({k: 1.5 * v for k, v in params.items()}))
        counted("gradient", lambda: fit.value_and_gradient({k: 2.5 * v for k, v in params.items()}))
        G = lg.GGN(fit, {k: 2.5 * v for k, v in params.items()})
        v = G.domain.pack(params)
        counted("product", lambda: G @ v)
        counted("columns", lambda: G @ V)
        counted("blocks", lambda: lg.BlockGGN(fit, {k: 2.5 * v for k, v in params.items()}, blocks="leaf") @ v)
        H = lg.Hessian(fit, {k: 2.5 * v for k, v in params.items()}).prepare()
        counted("solve", lambda: lg.solve(lg.Damped(G, 0.1), v, lg.CG(steps=7)))
        counted("MINRES", lambda: found.update(products=lg.solve(H, v, lg.MINRES(max_steps=5, rtol=0.0)).products))
        counted("krylov", lambda: lg.krylov(G, v, 5))
        counted("watched", lambda: lg.solve(lg.Damped(G, 0.1), v, lg.CG(steps=7), watch=[lg.Recorder()]))
        return found

    mark, marks = 17, 33
    for found in on_threads(2, work):
        assert found["first"] == [mark + 1, 1 + n + 1 + marks]
        assert found["value"] == [1 + 1 + marks]
        assert found["gradient"] == [1 + n + 1 + marks]
        assert (found["product"], found["columns"], found["blocks"]) == ([n], [5 * n], [n])
        assert found["solve"] == found["watched"] == [marks] + [n] * 7
        assert found["MINRES"] == [marks] + [n] * found["products"]
        assert found["krylov"] == [marks] + [n] * 5


def test_a_process_may_have_no_batch(numpy_backend):
    ops = numpy_backend
    params, *data = problem(ops)
    alone = objective(ops, tuple(data), l2=0.1)

    def work(processes):
        fit = objective(ops, [] if processes.rank else [tuple(data)], l2=0.1, reduce=processes)
        return fit.value(params), lg.minimize(fit, params, max_steps=5).params

    for value, found in on_threads(2, work):
        assert value == alone.value(params)
        for name, x in lg.minimize(alone, params, max_steps=5).params.items():
            np.testing.assert_allclose(found[name], x, rtol=1e-10)


@pytest.mark.parametrize(
    "method",
    [
        lg.LevenbergMarquardt(),
        lg.TrustRegion(),
        lg.SGN(5),
        lg.FirstOrder(lg.optimisers.Adam(), rate=0.1),
        lg.NewtonCG(),
    ],
    ids=lambda method: method.title,
)
def test_methods_take_the_steps_of_one_process(eager, method):
    ops = eager
    params, *data = problem(ops, rows=20)
    alone = lg.minimize(objective(ops, tuple(data), l2=0.1), params, method, max_steps=6)

    def work(processes):
        fit = objective(ops, share(2, processes.rank, *data, cuts=[0, 5, 20]), l2=0.1, reduce=processes)
        return lg.minimize(fit, params, method, max_steps=6)

    first, second = on_threads(2, work)
    for name in params:
        assert (host(ops, first.params[name]) == host(ops, second.params[name])).all()
        np.testing.assert_allclose(host(ops, first.params[name]), host(ops, alone.params[name]), rtol=1e-8, atol=1e-10)


def test_batches_of_steps_are_shared_out(numpy_backend):
    ops = numpy_backend
    params, *data = problem(ops, rows=12)
    method = lg.SGN(4)
    batches = [share(3, i, *data) for i in range(3)]
    alone = lg.minimize(objective(ops, batches[0]), params, method, batches=batches, passes=2)

    def work(processes, cut=1, fewer=False):
        mine = [share(2, processes.rank, *batch, cuts=[0, cut, 4]) for batch in batches]
        mine = mine[:2] if fewer and processes.rank else mine
        mine = mine if not fewer else Unsized(mine)
        return lg.minimize(objective(ops, batches[0], reduce=processes), params, method, batches=mine, passes=2)

    for run in on_threads(2, work):
        for name in params:
            np.testing.assert_allclose(run.params[name], alone.params[name], rtol=1e-9)
    with pytest.raises(ValueError, match="fewer batches than another"):
        on_threads(2, lambda processes: work(processes, fewer=True))


def test_inner_steps_are_of_minibatches_of_all(eager):
    ops = eager
    params, *data = problem(ops, rows=12)
    method = lg.InnerGaussNewton(lg.optimisers.SGD(0.5), 0.1)
    batches = [share(3, i, *data) for i in range(3)]
    alone = lg.minimize(objective(ops, batches), params, method, max_steps=3)

    def work(processes, fewer=0):
        mine = [share(2, processes.rank, *batch, cuts=[0, 1, 4]) for batch in batches]
        fit = objective(ops, mine[processes.rank * fewer :], reduce=processes)
        return lg.minimize(fit, params, method, max_steps=3)

    for run in on_threads(2, work):
        close(ops, run.params, alone.params)
        close(ops, ops.asarray(run.value, "float64"), ops.asarray(alone.value, "float64"))
    with pytest.raises(ValueError, match="fewer minibatches than another"):
        on_threads(2, lambda processes: work(processes, 1))
    with pytest.raises(ValueError, match="hold them in a list"):
        lg.minimize(objective(ops, Unsized(batches), reduce=lambda x: x), params, method)


class Unsized:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_probes_and_estimates_do_not_depend_on_the_shares(numpy_backend):
    ops = numpy_backend
    params, *data = problem(ops)

    def asked(fit):
        G = lg.GGN(fit, params)
        recipes = lg.preconditioners.Jacobi("estimate"), lg.preconditioners.EmpiricalFisher(probes=None)
        return [
            lg.trace(G, products=7).value,
            lg.diagonal(G).value,
            lg.eigsh(G, 2).values,
            lg.krylov(G, fit.gradient(params), 5).eigenvalues(),
            *(recipe(lg.Damped(G, 0.1)).values for recipe in recipes),
        ]

    def work(processes):
        return asked(objective(ops, share(2, processes.rank, *data, cuts=[0, 5, 8]), reduce=processes))

    wanted = asked(objective(ops, tuple(data)))
    for found in on_threads(2, work):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_draws_for_examples_are_others_on_other_processes(numpy_backend):
    """The same examples on both: the mean of two independent draws is no draw twice."""
    ops = numpy_backend
    params, x, y, _ = problem(ops)

    def work(processes):
        return lg.Fisher(objective(ops, (x, y), reduce=processes), params) @ params

    first, second = on_threads(2, work)
    alone = lg.Fisher(objective(ops, (x, y)), params) @ params
    close(ops, first, second)
    assert abs(host(ops, first)["w"] - host(ops, alone)["w"]).max() > 1e-3


# what is refused


def test_parameters_that_differ_are_refused_on_all(eager):
    ops = eager
    params, x, y, _ = problem(ops)
    seen = []

    def work(processes, change):
        fit = objective(ops, share(2, processes.rank, x, y), reduce=processes)
        try:
            fit.gradient(change(dict(params)) if processes.rank else params)
        except ValueError as error:
            seen.append(str(error))
            raise

    def moved(params):
        w = np.array(host(ops, params["w"]))
        w[0, 0] = np.nextafter(w[0, 0], 9.0)
        return params | {"w": ops.asarray(w, "float64")}

    for change, match in (
        (moved, "the parameters are not the same on all processes"),
        (lambda p: {"w": p["w"], "v": p["v"], "b": p["c"]}, "do not have the same parameters"),
    ):
        seen.clear()
        with pytest.raises(ValueError, match=match):
            on_threads(2, lambda processes, change=change: work(processes, change))
        assert len(seen) == 2


def _rate(processes):
    return 0.1 + processes.rank


UNLIKE = {
    "l2": lambda p, fit, params, own: fit(l2=_rate(p)).value(params),
    "a tree for l2": lambda p, fit, params, own: fit(l2={"w": 1.0, "v": _rate(p), "c": 0.0}).value(params),
    "the loss": lambda p, fit, params, own: fit(loss=lg.losses.Huber(_rate(p))).value(params),
}
ASKED = {
    "damping": lambda p, fit, params, own: lg.solve(lg.Damped(lg.GGN(fit(), params), _rate(p)), params),
    "steps": lambda p, fit, params, own: lg.solve(lg.GGN(fit(), params), params, lg.CG(steps=2 + p.rank)),
    "tolerance": lambda p, fit, params, own: lg.solve(lg.GGN(fit(), params), params, lg.CG(rtol=_rate(p) / 10)),
    "solver": lambda p, fit, params, own: lg.solve(lg.GGN(fit(), params), params, (lg.CG(), lg.MINRES())[p.rank]),
    "k": lambda p, fit, params, own: lg.krylov(lg.GGN(fit(), params), params, 3 + p.rank),
    "pairs": lambda p, fit, params, own: lg.eigsh(lg.GGN(fit(), params), 1 + p.rank),
    "probes": lambda p, fit, params, own: lg.trace(lg.GGN(fit(), params), products=5 + p.rank),
    "method": lambda p, fit, params, own: lg.minimize(fit(), params, lg.LevenbergMarquardt(damping=_rate(p))),
    "limit": lambda p, fit, params, own: lg.minimize(fit(), params, max_steps=2 + p.rank),
    "the first state": lambda p, fit, params, own: lg.start(lg.NewtonCG(damping=_rate(p)), fit(), params),
}
OWN = {
    "solve": lambda p, fit, params, own: lg.solve(lg.GGN(fit(), params), own.gradient(params)),
    "a start": lambda p, fit, params, own: lg.solve(lg.GGN(fit(), params), params, x0=own.gradient(params)),
    "krylov": lambda p, fit, params, own: lg.krylov(lg.GGN(fit(), params), own.gradient(params), 3),
    "eigsh": lambda p, fit, params, own: lg.eigsh(lg.GGN(fit(), params), 2, start=own.gradient(params)),
}
DIFFERENT = {
    **{name: (ask, "objectives of the processes differ") for name, ask in UNLIKE.items()},
    **{name: (ask, "the processes ask for different things") for name, ask in ASKED.items()},
    **{f"{name} of one process": (ask, "is not the same on all processes") for name, ask in OWN.items()},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_besides_the_examples_is_refused_on_all(eager, name):
    """Numbers and vectors that were a wrong sum, or had one process wait for a product that no other takes."""
    ops, (ask, match) = eager, DIFFERENT[name]
    params, *data = problem(ops)
    seen = []

    def work(processes):
        mine = share(2, processes.rank, *data)

        def fit(**options):
            return objective(ops, mine, reduce=processes, **options)

        try:
            ask(processes, fit, params, objective(ops, mine))
        except ValueError as error:
            seen.append(str(error))
            raise

    with pytest.raises(ValueError, match=match):
        on_threads(2, work)
    assert len(seen) == 2


def test_dtypes_that_differ_are_refused(eager):
    ops = eager
    params, *data = problem(ops)

    def work(processes):
        dtype = ("float64", "float32")[processes.rank]
        mine = [ops.cast(x, dtype) for x in share(2, processes.rank, *data)]
        fit = objective(ops, tuple(mine), reduce=processes)
        return fit.value({name: ops.cast(x, dtype) for name, x in params.items()})

    with pytest.raises(ValueError, match=r"same parameters \(names, shapes, dtypes\)"):
        on_threads(2, work)


def test_what_needs_all_examples_is_refused_by_a_sentence(numpy_backend):
    ops = numpy_backend
    params, x, y, _ = problem(ops)
    fit = objective(ops, (x, y), reduce=lambda x: x)
    G = lg.GGN(fit, params)
    for ask in (
        lambda: lg.Gram(fit, params),
        lambda: lg.Jacobian(fit, params),
        lambda: lg.LossHessian(fit, params),
        lambda: lg.solve(lg.Damped(G, 0.1), params, lg.GramSolve()),
        lambda: lg.EmpiricalFisher(fit, params).low_rank(),
        lambda: lg.minimize(fit, params, lg.methods.LeastSquares()),
        lambda: lg.minimize(fit, params, lg.EGN()),
        lambda: lg.validate(G),
    ):
        with pytest.raises(ValueError, match="over processes"):
            ask()
    with pytest.raises(ValueError, match="would decide differently"):
        lg.minimize(fit, params, acceptance=objective(ops, (x, y)))
    assert "GramSolve" not in repr(lg.cost(lg.Damped(G, 0.1)))


def test_what_is_no_sum_is_named(numpy_backend):
    ops = numpy_backend
    params, x, y, _ = problem(ops)
    with pytest.raises(TypeError, match="reduce= is a function of a flat array"):
        objective(ops, (x, y), reduce=3)
    with pytest.raises(TypeError, match=r"must return the sum over processes .* it returned float32\(\)"):
        objective(ops, (x, y), reduce=lambda x: np.asarray(x.sum())).value(params)
    with pytest.raises(ValueError, match="summed over processes already"):
        lg.distributed.DataParallel(objective(ops, (x, y), reduce=lambda x: x))
    with pytest.raises(TypeError, match=r"numpy has no groups of processes.*mpi4py"):
        lg.distributed.DataParallel(objective(ops, (x, y)))
    with pytest.raises(TypeError, match=r"takes an lg\.Objective"):
        lg.distributed.DataParallel(model)


def test_a_plain_function_will_do_in_place_or_not(numpy_backend):
    ops = numpy_backend
    params, x, y, _ = problem(ops)
    whole = objective(ops, (x, y))

    def in_place(x):
        x *= 1.0

    for reduce in (in_place, lambda x: x.copy()):
        close(ops, objective(ops, (x, y), reduce=reduce).gradient(params), whole.gradient(params))


def test_a_compiling_framework_is_told_what_it_has_instead():
    jnp = pytest.importorskip("jax").numpy
    fit = lg.Objective(
        lambda p, x: x @ p, lg.losses.SquaredError(), (jnp.ones((3, 2)), jnp.ones(3)), reduce=lambda x: x
    )
    with pytest.raises(TypeError, match="sharded along the examples"):
        fit.value(jnp.ones(2))


# runs


def test_a_watcher_that_stops_one_stops_all_and_progress_is_shown_once(numpy_backend):
    ops = numpy_backend
    params, *data = problem(ops)
    shown = []

    class Bar:
        stops, shows = False, True

        def begin(self, look):
            shown.append("begin")

        def __call__(self, look):
            shown.append(look.step)

        def end(self, look):
            shown.append("end")

    def work(processes):
        fit = objective(ops, share(2, processes.rank, *data), reduce=processes)
        enough = lg.stop_when(lambda look: processes.rank == 1 and look.step >= 2)
        watch = [enough, Bar()]
        run = lg.minimize(fit, params, max_steps=9, watch=watch)
        step = lg.solve(lg.Damped(lg.GGN(fit, params), 1e-3), params, lg.CG(steps=9), watch=watch)
        return run.steps, run.status.name, step.steps, step.status.name

    assert on_threads(2, work) == [(2, "STOPPED", 2, "STOPPED")] * 2
    assert shown == ["begin", 0, 1, 2, "end"] * 2


def test_a_recorder_on_one_process_sends_nothing(numpy_backend):
    ops = numpy_backend
    params, *data = problem(ops)

    def work(processes):
        fit = objective(ops, share(2, processes.rank, *data), reduce=processes)
        watch = [lg.Recorder(), lg.ProgressBar(disable=True)] if processes.rank == 0 else []
        return lg.minimize(fit, params, max_steps=3, watch=watch).steps

    first, second = on_threads(2, work)
    assert first == second


def test_a_checkpoint_is_written_once_and_goes_on_with_other_numbers_of_processes(tmp_path):
    """Of NumPy's linearisations, which a file could hold: they are of one share, and are made again."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal(12)

    def fit(*data, **options):
        return lg.Objective(
            lambda w, x: np.tanh(x @ w),
            lg.losses.SquaredError(),
            data,
            jacobian=lambda w, x: x * (1 - np.tanh(x @ w) ** 2)[:, None],
            **options,
        )

    method, start = lg.LevenbergMarquardt(solver=lg.CG(steps=3)), np.zeros(3)
    wanted = lg.minimize(fit(x, y), start, method, max_steps=6).params

    def work(processes, steps):
        mine = share(processes.size, processes.rank, x, y, cuts=None if processes.size != 2 else [0, 7, 12])
        return lg.minimize(fit(*mine, reduce=processes), start, method, max_steps=steps, checkpoint=tmp_path / "run")

    for size, steps in ((4, 2), (2, 4)):
        runs = on_threads(size, lambda processes, steps=steps: work(processes, steps))
        assert {run.steps for run in runs} == {steps}
    on_one = lg.minimize(fit(x, y), start, method, max_steps=5, checkpoint=tmp_path / "run")
    assert on_one.steps == 5
    for run in on_threads(3, lambda processes: work(processes, 6)):
        np.testing.assert_allclose(run.params, wanted, rtol=1e-9)


def test_states_are_saved_by_the_first(numpy_backend, tmp_path):
    ops = numpy_backend
    params, *data = problem(ops)
    method = lg.LevenbergMarquardt()

    def work(processes):
        fit, path = objective(ops, share(2, processes.rank, *data), reduce=processes), tmp_path / f"{processes.rank}"
        state = lg.advance(method, fit, lg.start(method, fit, params))
        lg.save_state(path, state)
        processes.barrier.wait()
        again = lg.load_state(tmp_path / "0", method, fit, params)
        return path.exists(), float(again.value) == float(state.value)

    assert on_threads(2, work) == [(True, True), (False, True)]


def test_a_checkpoint_asks_who_writes(numpy_backend, tmp_path):
    ops = numpy_backend
    params, x, y, _ = problem(ops)
    with pytest.raises(ValueError, match="does not say which this is"):
        lg.minimize(objective(ops, (x, y), reduce=lambda x: x), params, checkpoint=tmp_path / "run")


def test_a_start_that_some_do_not_see_is_refused(numpy_backend, tmp_path):
    ops = numpy_backend
    params, *data = problem(ops)

    def work(processes, steps):
        fit = objective(ops, share(2, processes.rank, *data), reduce=processes)
        lg.minimize(fit, params, max_steps=1, checkpoint=tmp_path / f"run{processes.rank * (steps == 2)}")

    on_threads(2, lambda processes: work(processes, 1))
    with pytest.raises(ValueError, match="on a shared disk"):
        on_threads(2, lambda processes: work(processes, 2))


def test_a_reduction_reads_as_what_it_is():
    assert repr(OfThreads(1, 2, None, None)) == "OfThreads(process 1 of 2)"
    assert repr(lg.distributed.Reduction(lambda x: x)) == "Reduction()"
    fit = lg.Objective(model, lg.losses.SquaredError(), (np.ones((2, 3)), np.ones((2, 2))), reduce=lambda x: x)
    assert repr(fit).endswith("1 batch, Reduction())")
    assert copy.deepcopy(fit).reduce is fit.reduce
