"""Bad input: each kind has an error of its own, raised before anything wrong is computed, that says what to do."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.testing.strategies import array

from .cases import ByComplexStep, Case, dense, objective, put
from .networks import NETWORKS, flat, leaves

IN_CI_ON_JAX = (
    "test_parameters",
    "test_a_bad_batch_among_good_ones",
    "test_models",
    "test_plain_functions_that_are_no_scalars",
    "test_vectors",
    "test_numpy_inside_of_a_model_is_told",
    "test_arguments_in_another_order_are_told",
)

CASE = Case("mlp", "softmax", "mean", 3, "weights")
x, y = np.ones((4, 3)), np.array([0, 1, 2, 1])
frameworks = pytest.mark.parametrize("backend", ["numpy", "torch", "jax"], indirect=True)


def made_of(backend, model=NETWORKS["mlp"].model, loss=None, data=(x, y), **given):
    """An objective on any framework from NumPy data; the model's derivatives are supplied where there are none."""
    if backend.calculus is None and not given:
        given = {"jacobian": ByComplexStep(NETWORKS["mlp"].model, backend)}
    return lg.Objective(model, loss or lg.losses.CrossEntropy(), tuple(put(backend, part) for part in data), **given)


def asks(made, params):
    """Everything that could be asked first, on an objective of its own each."""
    yield lambda: made.with_data(made.batches[0]).value(params)
    yield lambda: made.with_data(made.batches[0]).gradient(params)
    yield lambda: lg.GGN(made.with_data(made.batches[0]), params).to_dense()
    yield lambda: lg.Hessian(made.with_data(made.batches[0]), params).to_dense()


def refused(made, params, error, message):
    """Whatever is asked first raises; and so it does a second time."""
    calculus = lg.backend_of(params).calculus
    for ask in list(asks(made, params))[: 4 if calculus is not None else 3]:
        for _ in range(2):
            with pytest.raises(error, match=message):
                ask()


def params_on(backend, dtype="float64"):
    return put(backend, CASE.params(), dtype)


@frameworks
def test_parameters(backend):
    made, params = made_of(backend), params_on(backend)
    wrong = dict(params, fc1=dict(params["fc1"], bias=put(backend, np.array([1.0, np.nan, 2.0, 3.0]))))
    refused(made, wrong, ValueError, r"the parameters hold NaN or infinity in \['fc1\.bias'\]; nothing can be computed")
    wrong = dict(params, fc2=put(backend, np.array([np.inf])))
    refused(made, wrong, ValueError, r"NaN or infinity in \['fc2'\]")
    with pytest.raises(ValueError, match=r"NaN or infinity in \['the array'\]"):
        made.at(put(backend, np.array([np.nan])))
    for dtype, kind in (("int32", "int32"), ("bool", "bool"), ("complex64", "complex64")):
        wrong = dict(params, step=backend.asarray(np.ones(2), dtype))
        refused(made, wrong, TypeError, rf"leaf 'step' of the parameters has dtype {kind}; vectors are real floating")
    refused(made, dict(params, rate=0.1), TypeError, r"leaf 'rate' of the parameters is a float, not a \w+ array")
    refused(made, {"a": put(backend, np.ones((0, 3)))}, ValueError, "the parameters hold no entries")
    with pytest.raises(TypeError, match="no array of a known framework was found"):
        made.value({})


@frameworks
def test_data(backend):
    params = params_on(backend)
    bad = x.copy()
    bad[1, 2] = np.nan
    refused(made_of(backend, data=(bad, y)), params, ValueError, "the inputs hold NaN or infinity; clean the data")
    masked = made_of(backend, data=(bad, y, np.array([1.0, 0.0, 1.0, 1.0])))
    refused(masked, params, ValueError, "a weight of zero does not stop NaN from spreading")
    refused(made_of(backend, data=(x, y + 2)), params, ValueError, r"class indices must lie in 0\.\.2.*got 3")
    refused(made_of(backend, data=(x, y[:3])), params, ValueError, r"targets must be integers of shape \(4,\)")
    refused(made_of(backend, data=(x[:0], y[:0])), params, ValueError, "empty batch: examples of shape .* are none")
    nothing = made_of(backend, data=(x, y, np.zeros(4)))
    refused(nothing, params, ValueError, "empty batch: none of its 4 examples counts")
    ignored = made_of(backend, loss=lg.losses.CrossEntropy(ignore_index=1), data=(x, np.ones(4, int)))
    refused(ignored, params, ValueError, "none of its 4 examples counts.*look at the mask")
    refused(made_of(backend, data=(x, y, np.ones(3))), params, ValueError, r"weights of shape \(3,\) do not fit")
    refused(made_of(backend, data=(x, y, -np.ones(4))), params, ValueError, "weights must not be negative")
    squared = made_of(backend, loss=lg.losses.SquaredError(), data=(x, np.full((4, 3), np.inf)))
    refused(squared, params, ValueError, "SquaredError: targets must be finite, got inf")
    refused(made_of(backend, data=(x, np.float64(1.0))), params, ValueError, "targets must be integers of shape")
    with pytest.raises(TypeError, match=r"A loss is wanted, got str"):
        lg.Objective(NETWORKS["mlp"].model, "mse", (x, y))


@pytest.mark.filterwarnings("ignore:invalid value")
@frameworks
def test_a_bad_batch_among_good_ones(backend):
    good, params = (x, y), params_on(backend)
    given = {"jacobian": ByComplexStep(NETWORKS["mlp"].model, backend)} if backend.calculus is None else {}
    infinite = np.where(np.eye(4, 3) == 1, -np.inf, 1.0)
    for bad, message in (((x, y + 2), "got 3"), ((infinite, y), "the inputs hold NaN"), ((x, y[:3]), "got int64 of")):
        data = [tuple(put(backend, part) for part in batch) for batch in (good, good, bad)]
        made = lg.Objective(NETWORKS["mlp"].model, lg.losses.CrossEntropy(), data, **given)
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                made.gradient(params)
            with pytest.raises(ValueError, match=message):
                made.value(params)


@frameworks
def test_models(backend):
    params, mlp = params_on(backend), NETWORKS["mlp"].model
    for wrap, kind in ((lambda z: (z, z), "tuple"), (lambda z: {"scores": z}, "dict"), (lambda z: [z], "list")):
        wrong = made_of(backend, model=lambda p, x, wrap=wrap: wrap(mlp(p, x)))
        refused(wrong, params, TypeError, rf"the model returned a {kind}, not one {backend.name} array. Wrap it")
    refused(made_of(backend, model=lambda p, x: None), params, TypeError, "the model returned a NoneType")
    xp = backend.namespace()
    wrong = made_of(backend, model=lambda p, x: xp.argmax(mlp(p, x), axis=-1))
    refused(wrong, params, TypeError, "the model returned an array of dtype int.*scores rather than classes")
    with pytest.raises(TypeError, match=r"the model must be a function \(params, inputs\) -> outputs, got dict"):
        made_of(backend, model={})
    with pytest.raises(TypeError, match=r"got SquaredError. The order is lg.Objective\(model, loss, data\)"):
        made_of(backend, model=lg.losses.SquaredError())
    for make in (lg.Objective.from_function, lg.Objective.from_residuals):
        with pytest.raises(TypeError, match="must be a function of the parameters, got int"):
            make(3)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_plain_functions_that_are_no_scalars(request, name):
    request.getfixturevalue(name)
    backend = lg.load(name)
    made, params = lg.Objective.from_function(lambda p: p**2), put(backend, np.ones(2))
    for ask in (made.value, made.gradient, lambda p: lg.Hessian(made, p).to_dense()):
        with pytest.raises(ValueError, match=r"an array of shape \(2,\); a plain objective must be a scalar"):
            ask(params)
    for kind in (lg.GGN, lg.BlockGGN, lg.Jacobian, lg.LossHessian):
        with pytest.raises(ValueError, match=rf"lg\.{kind.__name__} needs to know the model and the loss apart"):
            kind(made, params)
    # A loss of the user's own that has summed its examples without saying so.
    z = put(backend, np.ones((4, 2)))
    summed = lg.Objective(lambda p, x: x * p, lambda z, y: ((z - y) ** 2).sum(), (z, z))
    with pytest.raises(ValueError, match="It has already summed or averaged the examples' losses"):
        summed.gradient(params)


@frameworks
def test_vectors(backend):
    made, params = made_of(backend), params_on(backend)
    G = lg.GGN(made, params)
    for v, error, message in (
        (put(backend, np.ones(30)), ValueError, r"has shape \(30,\); expected a tree .* a flat array \(31,\)"),
        (put(backend, np.ones((2, 31))), ValueError, r"has shape \(2, 31\); expected a tree"),
        (put(backend, np.ones(31), "float32"), TypeError, "has dtype float32, expected float64; cast it"),
        ({"fc1": params["fc1"]}, ValueError, r"not a tree like this space's: missing \['fc2\.bias', 'fc2\.weight'\]"),
        (backend.flatten(params)[1], ValueError, r"Of a list in this order make dict\(zip\(names, arrays\)\)\."),
        (dict(params, fc3=params["fc2"]["bias"]), ValueError, r"unexpected \['fc3'\]"),
        (dict(params, fc1=params["fc2"]), ValueError, r"leaf 'fc1\.bias' of the vector has shape \(3,\), expected"),
        (put(backend, CASE.params(), "float32"), TypeError, r"leaf 'fc1\.bias' of the vector has dtype float32"),
    ):
        with pytest.raises(error, match=message):
            G @ v
    B = lg.BlockGGN(made, params).diagonal_blocks()["fc1"]
    with pytest.raises(ValueError, match="is not a tree like this space's"):
        B @ params


@frameworks
def test_mixed_frameworks(backend, torch):
    made, params = made_of(backend), params_on(backend)
    foreign = torch.ones(31) if backend.name != "torch" else np.ones(31)
    theirs = "torch" if backend.name != "torch" else "numpy"
    with pytest.raises(TypeError, match="arrays of several frameworks are mixed"):
        made.value(dict(params, extra=foreign))
    G = lg.GGN(made, params)
    with pytest.raises(TypeError, match=f"the vector belongs to {theirs} but the operator to {backend.name}"):
        G @ foreign
    ours = put(backend, x), put(backend, y)
    mixed = [(foreign[:4], ours[1]), (ours[0], foreign[:4]), (*ours, foreign[:4])]
    for data, what in zip(mixed, ("inputs", "targets", "weights"), strict=True):
        wrong = made.with_data(data)
        refused(wrong, params, TypeError, rf"the {what} belong to {theirs} .* but the parameters to {backend.name};")
        with pytest.raises(TypeError, match=rf"the {what} belong to {theirs}"):
            made.with_data([data, data]).value(params)


def cube(z, y):
    return abs(z - y).sum(-1)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda p: plain().gradient(p), r"a Gauss-Newton operator or a gradient needs derivatives, and numpy arrays"),
        (lambda p: lg.GGN(plain(), p).to_dense(), r"jvp= and vjp=, or jacobian=.*framework that differ.*doctor"),
        (lambda p: lg.Hessian(plain(), p).to_dense(), r"a Hessian needs .*lg\.GGN.*from_function"),
        (lambda p: scalar().gradient(p), r"a gradient needs .*gradient= and hvp="),
        (lambda p: lg.Hessian(scalar(), p).to_dense(), r"a Hessian needs .*Supply gradient= and hvp="),
        (
            lambda p: lg.Hessian(scalar(gradient=lambda p: p), p).to_dense(),
            r"a Hessian needs .*Supply gradient= and hvp= \(Objective\.from_function\)",
        ),
        (
            lambda p: made_of(lg.load("numpy"), loss=cube, data=(x, x)).gradient(p),
            r"the gradient of a loss without closed forms needs .*one of lg\.losses.*subclass of lg\.losses\.Loss",
        ),
    ],
)
def test_a_derivative_that_is_missing_lists_the_ways(ask, message):
    with pytest.raises(lg.MissingDerivativeError, match=message):
        ask(CASE.params())


def plain():
    made = objective(CASE, lg.load("numpy"))
    return lg.Objective(made.model, made.loss, [(b.inputs, b.targets) for b in made.batches])


def scalar(**given):
    return lg.Objective.from_function(lambda p: sum(np.sum(leaf**2) for leaf in leaves(p)), **given)


def test_a_value_needs_no_derivative():
    assert float(plain().value(CASE.params())) == pytest.approx(dense(CASE._replace(weighting="none")).value, rel=1e-13)
    assert float(scalar().value(CASE.params())) == pytest.approx(float(np.sum(flat(CASE.params()) ** 2)), rel=1e-13)


def test_a_product_that_is_not_finite_is_a_status(torch):
    backend = lg.load("torch")
    made = lg.Objective.from_residuals(lambda p: torch.sqrt(p))
    G = lg.GGN(made, torch.zeros(2, dtype=torch.float64))
    v = torch.ones(2, dtype=torch.float64)
    assert not torch.isfinite(G @ v).any()
    step = lg.solve(lg.Damped(G, 1.0), v)
    assert step.status is lg.Status.NONFINITE
    assert torch.isfinite(step.x).all()
    assert lg.solve(G, v * float("nan")).status is lg.Status.NONFINITE_INPUT
    assert backend.name == "torch"


def test_functions_of_other_arguments_are_told_how_they_are_called():
    p, data = np.ones(2), (np.ones((3, 2)), np.ones(3))
    loss, line = lg.losses.SquaredError(), lambda p, x: x @ p
    asked = [
        (lambda: lg.Objective(lambda p: p, loss, data, jacobian=lambda p, x: x), "the model is called as model"),
        (lambda: lg.Objective(line, loss, data, jacobian=lambda p: p), r"jacobian= is called as jacobian\(params"),
        (lambda: lg.Objective(line, loss, data, jvp=line, vjp=line), r"vjp= is called as vjp\(.*with 3 arguments"),
        (
            lambda: lg.Objective.from_residuals(lambda p: p, jacobian=line),
            r"1 argument, but its signature is \(p, x\)",
        ),
        (
            lambda: lg.Objective.from_function(lambda p: p @ p, gradient=line),
            "gradient= is called as gradient",
        ),
    ]
    for make, message in asked:
        with pytest.raises(TypeError, match=message):
            make().gradient(p)
    square = lg.Objective.from_function(lambda p: p @ p, gradient=lambda p: 2 * p, hvp=lambda v: v)
    with pytest.raises(TypeError, match=r"hvp= is called as hvp\(.*with 2 arguments, but its signature is \(v\)"):
        lg.Hessian(square, p) @ p
    with pytest.raises(TypeError, match=r"jac is called as jac\(x, \*args"):
        lg.least_squares(lambda p, c: p - c, p, lambda p: np.eye(2), args=(2.0,))
    with pytest.raises(TypeError, match="unhashable"):  # errors inside are nobody's arity
        lg.Objective(line, loss, data, jacobian=lambda p, x: {}[[]]).gradient(p)


@frameworks
def test_arguments_in_another_order_are_told(backend):
    swapped = lg.Objective(lambda x, p: x @ p["A"], lg.losses.SquaredError(), (put(backend, x), put(backend, x)))
    with pytest.raises(Exception, match=r".") as raised:
        swapped.value({"A": put(backend, np.ones((3, 2)))})
    told = "the model is called as model(params[, inputs]), here with a dict and an array (4, 3)."
    assert told in raised.value.__notes__


def test_one_note_says_what_was_called():
    with pytest.raises(IndexError) as raised:
        lg.least_squares(lambda p: p["a"] - x[0], [1.0])
    assert raised.value.__notes__ == ["fun is called as fun(x, *args, **kwargs), here with an array (1,)."]


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_numpy_inside_of_a_model_is_told(name):
    residuals = lambda p: np.exp(p) - 1.0  # noqa: E731
    for options, p in (({"derivatives": name}, np.ones(2)), ({}, array(lg.load(name), np.ones(2), "float32"))):
        with pytest.raises(TypeError, match=r"calls a function of NumPy on .*lg\.namespace\(params\)"):
            lg.Objective.from_residuals(residuals, **options).gradient(p)


def test_the_byte_order_of_other_machines_is_named():
    foreign = np.dtype("f8").newbyteorder("S")
    x, y, p = np.arange(6.0).reshape(3, 2), np.ones(3), np.ones(2)
    data = x.astype(foreign), y.astype(foreign)
    lent = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), data, derivatives="torch")
    right = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), (x, y), jacobian=lambda p, x: x).gradient(p)
    np.testing.assert_array_equal(lent.gradient(p), right)
    for door in (
        lambda: lent.gradient(p.astype(foreign)),
        lambda: lg.Dense(x.astype(foreign)),
        lambda: lg.solve(lg.Diagonal(p), p.astype(foreign), lg.CG()),
        lambda: lg.Objective.from_residuals(lambda p: p, jacobian=lambda p: np.eye(2, dtype=foreign)).gradient(p),
    ):
        with pytest.raises(TypeError, match=r"float64 \(big-endian\)"):
            door()


def foreign(backend, torch):
    return np.ones((4, 3)) if backend.name == "torch" else torch.ones(4, 3)


def test_values_are_looked_at_whether_the_model_was_asked_before_or_not(backend, torch):
    """A compiled program runs meanwhile; the next question at the same parameters is refused, too."""
    made, params = made_of(backend), params_on(backend)
    made.value(params)
    wrong = dict(params, fc1=dict(params["fc1"], bias=put(backend, np.array([1.0, np.nan, 2.0, 3.0]))))
    for ask in (made.value, made.gradient, made.value_and_gradient, made.at, made.value):
        with pytest.raises(ValueError, match="NaN or infinity in"):
            ask(wrong)
    batch = made.batches[0]
    spoiled = made.with_data((batch.inputs * np.nan, batch.targets))
    for ask in (spoiled.value, spoiled.value, spoiled.gradient):
        with pytest.raises(ValueError, match="the inputs hold NaN or infinity"):
            ask(params)
    for inputs, targets in ((foreign(backend, torch), batch.targets), (batch.inputs, foreign(backend, torch)[:, 0])):
        unfit = made.with_data((inputs, targets))
        for ask in (unfit.value, unfit.value, unfit.gradient, unfit.at):
            with pytest.raises(TypeError, match=f"belong to .* but the parameters to {backend.name};"):
                ask(params)
