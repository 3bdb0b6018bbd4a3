"""Graphs and sets in torch: message passing as PyTorch Geometric writes it, with its scatters written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .cases import Case

F = nn.functional

EDGES = torch.tensor([[0, 1, 1, 2, 2, 0, 3, 4, 4, 5, 5, 3, 0, 3], [1, 0, 2, 1, 0, 2, 4, 3, 5, 4, 3, 5, 3, 0]])
NODES, WHICH = 6, torch.tensor([0, 0, 0, 1, 1, 1])


def added(messages: Tensor, to: Tensor, n: int = NODES) -> Tensor:
    return messages.new_zeros(n, *messages.shape[1:]).index_add(0, to, messages)


def largest(messages: Tensor, to: Tensor, n: int = NODES) -> Tensor:
    at = to[:, None].expand_as(messages)
    return messages.new_zeros(n, messages.shape[1]).scatter_reduce(0, at, messages, "amax", include_self=False)


def softmax(scores: Tensor, to: Tensor) -> Tensor:
    """Over the edges that come in at a node."""
    raised = (scores - largest(scores.detach(), to)[to]).exp()
    return raised / added(raised, to)[to]


class GCN(nn.Module):
    """Kipf and Welling, 2017: a normalised adjacency, sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.drop = nn.Linear(4, 6), nn.Linear(6, 3), nn.Dropout(0.2)
        loops = torch.cat([EDGES, torch.arange(NODES).repeat(2, 1)], 1)
        root = torch.bincount(loops[1]).rsqrt()
        A = torch.sparse_coo_tensor(loops.flip(0), root[loops[0]] * root[loops[1]], (NODES, NODES))
        self.register_buffer("A", A.coalesce())

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.sparse.mm(self.A, self.one(x)))
        return torch.sparse.mm(self.A, self.two(self.drop(x)))


class GAT(nn.Module):
    """Veličković et al., 2018; two heads, attention over incoming edges."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.head = nn.Linear(4, 6, bias=False), nn.Linear(6, 3)
        self.source, self.target = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        (src, dst), h = EDGES, self.lin(x).view(-1, 2, 3)
        scores = F.leaky_relu((h * self.source).sum(-1)[src] + (h * self.target).sum(-1)[dst], 0.2)
        return self.head(F.elu(added(h[src] * softmax(scores, dst)[..., None], dst).flatten(1)))


class GIN(nn.Module):
    """Xu et al., 2019: sums and a learnt epsilon; a class for each graph, batch norm in training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))
        self.eps, self.head = nn.Parameter(torch.tensor(0.1)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.net((1 + self.eps) * x + added(x[EDGES[0]], EDGES[1]))
        return self.head(added(h, WHICH, 2))


class SAGE(nn.Module):
    """GraphSAGE with the largest message, and normalised rows."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.own, self.theirs = nn.Linear(4, 5), nn.Linear(4, 3), nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = largest(F.relu(self.pool(x))[EDGES[0]], EDGES[1])
        return F.normalize(self.own(x) + self.theirs(h), dim=-1)


class MPNN(nn.Module):
    """Gilmer et al., 2017: messages by a matrix that a network makes of each edge, a GRU, and set2set's read-out."""

    def __init__(self, d: int = 4) -> None:
        super().__init__()
        self.edge, self.update = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, d * d)), nn.GRUCell(d, d)
        self.read, self.head = nn.LSTMCell(2 * d, d), nn.Linear(2 * d, 2)
        self.register_buffer("features", torch.randn(EDGES.shape[1], 2))

    def forward(self, x: Tensor) -> Tensor:
        h, A = x, self.edge(self.features).view(-1, 4, 4)
        for _ in range(2):
            h = self.update(added((A @ h[EDGES[0], :, None])[..., 0], EDGES[1]), h)
        q, state = x.new_zeros(2, 8), None
        for _ in range(2):
            state = self.read(q, state)
            weights = torch.stack([(h @ state[0][i]).masked_fill(i != WHICH, -torch.inf).softmax(0) for i in range(2)])
            q = torch.cat([state[0], weights @ h], -1)
        return self.head(q)


class EGNN(nn.Module):
    """Satorras et al., 2021: features and positions, equivariant to rotations."""

    def __init__(self) -> None:
        super().__init__()

        def net(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Linear(a, 6), nn.SiLU(), nn.Linear(6, b))

        self.message, self.move, self.update = net(5, 4), net(4, 1), net(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        (src, dst), h, x = EDGES, x[:, :2], x[:, 2:]
        for _ in range(2):
            d = x[dst] - x[src]
            m = self.message(torch.cat([h[dst], h[src], d.square().sum(-1, keepdim=True)], -1))
            x, h = x + added(d * self.move(m), dst), h + self.update(torch.cat([h, added(m, dst)], -1))
        return x


class SchNet(nn.Module):
    """Forces as the derivative of an energy, by a continuous filter (Schütt et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.filter = nn.Parameter(torch.randn(NODES, 3)), nn.Sequential(nn.Linear(5, 4), nn.Softplus())
        self.mix, self.out = nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        distance = (x[EDGES[0]] - x[EDGES[1]]).norm(dim=-1, keepdim=True)
        basis = (-2.0 * (distance - torch.linspace(0.0, 2.0, 5)).square()).exp()
        h = torch.tanh(self.embed + added(self.mix(self.filter(basis)) * self.embed[EDGES[0]], EDGES[1]))
        energy = self.out(h).sum()
        return -torch.autograd.grad(energy, x, create_graph=True)[0]


class Chebyshev(nn.Module):
    """Chebyshev polynomials of a dense Laplacian, with residual connections and a graph's softmax pooling."""

    def __init__(self) -> None:
        super().__init__()
        A = torch.zeros(NODES, NODES).index_put((EDGES[0], EDGES[1]), torch.ones(EDGES.shape[1]))
        self.register_buffer("L", -A / A.sum(1).sqrt()[:, None] / A.sum(1).sqrt())
        self.weight, self.pool = nn.Parameter(torch.randn(4, 4, 4) / 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        T = [x, self.L @ x]
        for _ in range(2):
            T.append(2 * self.L @ T[-1] - T[-2])
        h = x + F.gelu(torch.einsum("kni,kio->no", torch.stack(T), self.weight))
        return self.pool(h).softmax(-1).T @ h


class DeepSets(nn.Module):
    """Zaheer et al., 2017; sets of several sizes, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 6), nn.ELU(), nn.Linear(6, 5))
        self.rho = nn.Sequential(nn.Linear(5, 6), nn.ELU(), nn.Linear(6, 2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.rho((self.phi(x) * mask[..., None]).sum(1))


class SetTransformer(nn.Module):
    """Lee et al., 2019: induced points, and pooling by attention."""

    def __init__(self, d: int = 4) -> None:
        super().__init__()
        self.points, self.seed = nn.Parameter(torch.randn(2, d)), nn.Parameter(torch.randn(1, d))
        self.a, self.b, self.c = (nn.MultiheadAttention(d, 2, batch_first=True) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(self.points.expand(len(x), -1, -1), x, x)[0]
        x = self.norm(x + self.b(x, h, h)[0])
        return self.head(self.c(self.seed.expand(len(x), -1, -1), x, x)[0][:, 0])


class PointNet(nn.Module):
    """Qi et al., 2017: a learnt transformation, shared layers, the largest of all points."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.AdaptiveMaxPool1d(1), nn.Flatten()
        self.align = nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU(), *pool, nn.Linear(6, 9))
        self.shared = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 1))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        turn = self.align(x).view(-1, 3, 3) + torch.eye(3)
        return self.head(self.shared(turn @ x).amax(-1))


def nodes(model: Callable[[], nn.Module], classes: int = 0, *, width: int = 4) -> Callable[[], Case]:
    def build() -> Case:
        made, x = model(), torch.randn(NODES, width)
        z = made(x)
        y = torch.randint(classes, z.shape[:-1]) if classes else torch.randn_like(z).detach()
        return Case(made, x, y, "classes" if classes else "squares")

    return build


def sets() -> Case:
    return Case(DeepSets(), (torch.randn(4, 5, 3), torch.rand(4, 5) > 0.3), torch.poisson(torch.ones(4, 2)), "counts")


CASES = {
    "GCN, sparse adjacency": nodes(GCN, 3),
    "GAT": nodes(GAT, 3),
    "GIN, statistics of the batch": nodes(GIN, 3),
    "GraphSAGE, largest message": nodes(SAGE, 3),
    "MPNN, edge network and set2set": nodes(MPNN, 2),
    "EGNN": nodes(EGNN, width=5),
    "SchNet, forces": nodes(SchNet, width=3),
    "Chebyshev convolutions": nodes(Chebyshev),
    "Deep sets, masked": sets,
    "Set transformer": lambda: Case(SetTransformer(), torch.randn(3, 5, 4), torch.randint(3, (3,))),
    "PointNet": lambda: Case(PointNet(), torch.randn(3, 3, 7), torch.randint(3, (3,))),
}
