"""Loss modules of torch as they are: value, gradient and Hessian are those that torch differentiates."""

import itertools
from functools import partial

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.curvature.losses.outer import OuterLoss
from linop_gn.testing.strategies import array

torch = pytest.importorskip("torch")
nn, N, C = torch.nn, 7, 4
rng = torch.Generator().manual_seed(0)
X, W = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((N, 3), (3, C)))
LABELS = torch.randint(C, (N,), generator=rng)
IGNORED = torch.where(torch.arange(N) == 2, -100, LABELS)
CHANCES = torch.softmax(torch.randn(N, C, generator=rng, dtype=torch.float64), -1)
ANSWERS = torch.randint(2, (N, C), generator=rng).double()
CLASSES = torch.tensor([0.5, 2.0, 0.0, 1.3], dtype=torch.float64)
ROWS = torch.rand(N, 1, generator=rng, dtype=torch.float64)


def cases():
    for reduction, smoothing, weight in itertools.product(("mean", "sum"), (0.0, 0.3), (None, CLASSES)):
        options = {"reduction": reduction, "label_smoothing": smoothing, "weight": weight}
        for targets in (LABELS, IGNORED, CHANCES):
            yield nn.CrossEntropyLoss(**options), targets
    for reduction in ("mean", "sum"):
        yield nn.CrossEntropyLoss(reduction=reduction, ignore_index=1), LABELS
        yield nn.MSELoss(reduction=reduction), ANSWERS
        yield nn.PoissonNLLLoss(reduction=reduction), ANSWERS
        for weight, positive in itertools.product((None, CLASSES, ROWS), (None, CLASSES)):
            yield nn.BCEWithLogitsLoss(reduction=reduction, weight=weight, pos_weight=positive), ANSWERS


@pytest.mark.parametrize(("loss", "targets"), list(cases()))
def test_value_gradient_and_hessian_are_torchs(loss, targets):
    objective = lg.Objective(lambda w, x: x @ w, loss, (X, targets))
    assert not objective.loss.autodiff
    assert OuterLoss(objective.loss, None, None, lg.backend_of(X)).known(X)  # of which Hessians hold less

    def plain(w):
        return loss(X @ w, targets)

    close = {"rtol": 1e-10, "atol": 1e-12}
    right = torch.func.hessian(plain)(W).reshape(3 * C, 3 * C)
    torch.testing.assert_close(objective.value(W), plain(W), **close)
    torch.testing.assert_close(objective.gradient(W), torch.func.grad(plain)(W), **close)
    for operator in (lg.GGN, lg.Hessian):
        torch.testing.assert_close(operator(objective, W).to_dense(), right, **close)


FUNCTIONS = [
    (nn.functional.cross_entropy, nn.CrossEntropyLoss(), IGNORED),
    (nn.functional.mse_loss, nn.MSELoss(), ANSWERS),
    (nn.functional.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss(), ANSWERS),
    (nn.functional.poisson_nll_loss, nn.PoissonNLLLoss(), ANSWERS),
    (partial(nn.functional.mse_loss, reduction="sum"), nn.MSELoss(reduction="sum"), ANSWERS),
    (
        partial(nn.functional.cross_entropy, weight=CLASSES, label_smoothing=0.2),
        nn.CrossEntropyLoss(weight=CLASSES, label_smoothing=0.2),
        IGNORED,
    ),
]


@pytest.mark.parametrize(("function", "module", "targets"), FUNCTIONS)
def test_the_functions_are_their_modules(function, module, targets):
    mine, theirs = (lg.Objective(lambda w, x: x @ w, loss, (X, targets)) for loss in (function, module))
    assert type(mine.loss) is type(theirs.loss)
    assert not mine.loss.autodiff
    torch.testing.assert_close(mine.value(W), function(X @ W, targets), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(mine.value(W), theirs.value(W), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.functional.mse_loss])
def test_a_loss_in_the_place_of_the_model_is_told_the_order(loss):
    with pytest.raises(TypeError, match=r"The order is lg.Objective\(model, loss, data\)"):
        lg.Objective(loss, nn.Linear(2, 3), (torch.ones(4, 2), torch.zeros(4, dtype=torch.long)))


def test_functions_of_each_example_are_differentiated_by_torch():
    for options in ({"reduction": "none"}, {"reduction": "none", "weight": CLASSES}):
        loss = lg.losses.as_loss(partial(nn.functional.cross_entropy, **options))
        assert isinstance(loss, lg.losses.FromFunction)
    weighed = partial(nn.functional.mse_loss, weight=torch.ones_like(ANSWERS))  # which no module takes
    assert isinstance(lg.losses.as_loss(weighed), lg.losses.FromFunction)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(weight=CLASSES), nn.MSELoss(), nn.BCEWithLogitsLoss()], ids=str)
def test_batches_of_different_sizes_are_one(loss):
    y = LABELS if isinstance(loss, nn.CrossEntropyLoss) else ANSWERS
    split = lg.Objective(lambda w, x: x @ w, loss, [(X[:2], y[:2]), (X[2:], y[2:])])
    torch.testing.assert_close(split.value(W), loss(X @ W, y), rtol=1e-12, atol=0.0)


def test_the_laws_hold():
    for loss, y in ((nn.CrossEntropyLoss(weight=CLASSES, label_smoothing=0.2), IGNORED), (nn.MSELoss(), ANSWERS)):
        assert lg.validate(lg.GGN(lg.Objective(lambda w, x: x @ w, loss, (X, y)), W)).passed


@pytest.mark.parametrize(
    "loss", [nn.L1Loss(), nn.HuberLoss(), nn.PoissonNLLLoss(full=True), nn.PoissonNLLLoss(log_input=False)], ids=str
)
def test_what_has_no_closed_form_is_refused_by_name(loss):
    with pytest.raises(TypeError, match=rf"{type(loss).__name__}.*has no closed form here.*FromFunction\(loss"):
        lg.Objective(lambda w, x: x @ w, loss, (X, ANSWERS))


@pytest.mark.parametrize("weight", [None, torch.ones(4).double()])
def test_classes_of_more_axes_are_refused(weight):
    maps = lg.Objective(
        lambda w, x: x[..., None] * w.sum(), nn.CrossEntropyLoss(weight=weight), (torch.ones(2, 4), None)
    )
    with pytest.raises(ValueError, match="move that axis last in the model"):
        maps.with_data((torch.ones(5, 4).double(), torch.zeros(5, 1, dtype=torch.long))).value(W)
    images = lg.Objective(lambda w, x: x[:, None, None] * w.sum(), nn.CrossEntropyLoss(), (torch.ones(2, 3, 3), None))
    with pytest.raises(ValueError, match="move that axis last in the model"):
        images.with_data((torch.ones(5, 3).double(), torch.zeros(5, 1, 3, dtype=torch.long))).value(W)


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.MSELoss, nn.L1Loss])
def test_no_reduction_is_refused(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__}\(reduction='none'\) does not say.*FromFunction\(loss, red"):
        lg.Objective(lambda w, x: x @ w, kind(reduction="none"), (X, LABELS))


def test_without_a_reduction_the_framework_differentiates():
    loss = nn.CrossEntropyLoss(reduction="none")
    objective = lg.Objective(lambda w, x: x @ w, lg.losses.FromFunction(loss), (X, LABELS))
    assert objective.loss.autodiff
    torch.testing.assert_close(objective.value(W), loss(X @ W, LABELS).mean())


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_weights_of_classes(name):
    backend = lg.load(name)
    dtype = "float64" if name != "jax" else "float32"
    z, numbers = array(backend, (X @ W).numpy(), dtype), CLASSES.numpy()
    xp, y = backend.namespace(), array(backend, LABELS.numpy(), "int64" if name != "jax" else "int32")
    right = torch.func.grad(lambda z: nn.functional.cross_entropy(z, LABELS, weight=CLASSES))(X @ W).numpy()
    for weight in (list(numbers), numbers, array(backend, numbers, dtype))[name == "jax" :]:
        loss = lg.losses.CrossEntropy(weight=weight)
        found = loss.gradient(xp, z, y, None) / loss.weight_sum(xp, z, y, None)
        np.testing.assert_allclose(backend.to_numpy(found), right, atol=1e-6)
        assert backend.to_numpy(found).dtype == dtype


@pytest.mark.parametrize(
    ("weight", "message"),
    [([1, 2, 3], r"has shape \(3,\) for 4"), ([1, 2, 3, -1], "not be negative"), ([1, 2, 3, np.nan], "be finite")],
)
def test_weights_of_classes_are_looked_at(weight, message):
    with pytest.raises(ValueError, match=f"CrossEntropy: weight.*{message}"):
        lg.Objective(lambda w, x: x @ w, lg.losses.CrossEntropy(weight=weight), (X, LABELS)).value(W)
