"""Leaves in no memory: operations gather them, views and graphs do not; derivatives are those of leaves."""

import pytest

torch = pytest.importorskip("torch")

from linop_gn_torch.gathering import groups_of  # noqa: E402
from linop_gn_torch.wholes import Gather, Whole, in_full  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402


class Halved:
    """Leaves of which this process has a half of each number."""

    def __init__(self, parts, counts):
        self.parts, self.leaves, self.counts = parts, tuple(range(len(parts))), counts

    def shape(self, leaf):
        return tuple(self.parts[leaf].shape)

    def of(self, parts):
        return Halved(
            [torch.zeros_like(x) if v is None else v for v, x in zip(parts, self.parts, strict=True)], self.counts
        )

    def gathered(self):
        self.counts["gathered"] += 1
        return {i: 2.0 * part.detach() for i, part in enumerate(self.parts)}

    def scattered(self, wholes, recorded):
        self.counts["scattered"] += 1
        return [torch.zeros_like(x) if u is None else 2.0 * u for u, x in zip(wholes, self.parts, strict=True)]


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.fixture
def counts():
    return {"gathered": 0, "scattered": 0}


def gather(parts, counts):
    return Gather.apply(Halved(parts, counts), *parts)


def model(w, b, x):
    left, right = w.t().split([2, 2], dim=1)
    h = torch.nn.functional.linear(x, w, b).tanh()
    return h @ w[:, :2] + (x @ left).sin() * right.mT.diagonal().sum() + b[1:3].expand(5, 2)


def test_derivatives_are_those_of_leaves(counts):
    x, parts = draw(5, 3), [draw(4, 3), draw(4)]
    v, u = [draw(4, 3), draw(4)], draw(5, 2)

    def of_parts(w, b):
        return model(*gather([w, b], counts), x)

    def plain(w, b):
        return model(2 * w, 2 * b, x)

    found, wanted = [], []
    for function, to in ((of_parts, found), (plain, wanted)):
        leaves, seed = [p.clone().requires_grad_() for p in parts], u.clone().requires_grad_()
        z = function(*leaves)
        recorded = torch.autograd.grad(z, leaves, seed, create_graph=True)
        (Jv,) = torch.autograd.grad(recorded, seed, v, retain_graph=True)
        to += [z, *recorded, in_full(Jv), *torch.autograd.grad(recorded, leaves, v)]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, t) for p, t in zip(parts, v, strict=True)]
            to.append(forward_ad.unpack_dual(function(*duals)).tangent)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
        assert type(a) is torch.Tensor


def test_views_and_what_is_saved_gather_nothing(counts):
    w, b = gather([draw(4, 3).requires_grad_(), draw(4).requires_grad_()], counts)
    views = [w.t(), w[1:], w.reshape(12), w.unsqueeze(0).expand(2, 4, 3), *w.unbind(), w.detach(), b.view(2, 2)]
    assert all(type(view) is Whole for view in views)
    assert counts == {"gathered": 0, "scattered": 0}
    z = w @ draw(3, 2)
    assert type(z) is torch.Tensor
    assert counts["gathered"] == 1
    assert type(z.grad_fn._saved_self if z.grad_fn._saved_self is not None else w) is Whole
    for view in views:
        assert type(in_full(view)) is torch.Tensor
    assert type(w.view(torch.int64)) is torch.Tensor  # what reads the bits


def test_sparse_gradients_are_scattered_as_dense_ones(counts):
    rows, table = torch.tensor([0, 3, 3]), draw(5, 2).requires_grad_()
    (w,) = gather([table], counts)
    (found,) = torch.autograd.grad(torch.nn.functional.embedding(rows, w, sparse=True).sin().sum(), table)
    (wanted,) = torch.autograd.grad((2.0 * table)[rows].sin().sum(), table)
    assert found.layout is torch.strided
    torch.testing.assert_close(found, wanted)


def test_what_writes_to_a_leaf_is_told(counts):
    w, _ = gather([draw(4, 3), draw(4)], counts)
    with pytest.raises(ValueError, match="writes to parameter 0"):
        w.add_(1.0)
    with pytest.raises(ValueError, match="writes to parameter 0"):
        w.t()[0].zero_()
    with torch.no_grad(), pytest.raises(ValueError, match="writes to parameter 0"):
        torch._foreach_mul_([w], 2.0)
    with torch.no_grad(), pytest.raises(ValueError, match="writes to parameter 0"):
        torch.add(draw(4, 3), 1.0, out=w)
    out = torch.zeros(4, 3, dtype=torch.float64).add_(w)
    torch.testing.assert_close(out, 2.0 * draw(4, 3))


@pytest.mark.parametrize("many", [0, 1, 40])
def test_groups_are_no_larger_than_a_leaf(many):
    shapes = [(16, 16), *[(16,), (16, 16), (), (0, 3)] * many]
    groups = groups_of(shapes, 32)
    assert sorted(i for group in groups for i in group) == list(range(len(shapes)))
    sizes = [sum(torch.Size(shapes[i]).numel() for i in group) for group in groups]
    assert max(sizes) == 256
    assert all(len(group) == 1 or size <= 32 for group, size in zip(groups, sizes, strict=True))
