"""PyTorch: what products and Gauss-Newton steps cost, in multiples of one gradient, beside curvlinops.

    python benchmarks/bench_torch_curvature.py [--rounds 15] [--save]
    python benchmarks/bench_torch_curvature.py --few [--rounds 15] [--save]

One gradient is loss and backward on the same batch. A Gauss-Newton step is the
gradient, the set-up of the operator and 20 CG iterations on the damped GGN. With
``--few``, what few outputs allow: 32 examples and ten classes by a Gram step, and
products with nine diagonal blocks; and a small model, a network of 321 parameters in
a differential equation, beside the same products by hand. What is compiled (``compile=True``) is
compiled before it is timed, which takes minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from gram_by_hand import torch_step
from rich.console import Console
from rich.table import Table
from timing import interleaved, save
from torch import nn

import linop_gn as lg

STEPS, DAMPING = 20, 1e-4  # so little damping that 20 steps are not enough


class Block(nn.Module):
    """A pre-norm transformer block with fused attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.mix(self.norm1(x)).chunk(3, dim=-1)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class LanguageModel(nn.Module):
    """Embedding, blocks, untied head."""

    def __init__(self, vocabulary: int = 256, width: int = 128, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(blocks)])
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embedding(tokens)))


def networks() -> dict[str, tuple[nn.Module, torch.Tensor, torch.Tensor]]:
    """Three networks with a batch each."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    cnn = nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    return {
        "MLP 784-512-512-10, batch 512": (mlp, torch.randn(512, 784), torch.randint(10, (512,))),
        "CNN, batch 128": (cnn, torch.randn(128, 1, 28, 28), torch.randint(10, (128,))),
        "transformer 2 x 128, 8 x 64 tokens": (
            LanguageModel(),
            torch.randint(256, (8, 64)),
            torch.randint(256, (8, 64)),
        ),
    }


def plain_cg(product: Callable[[torch.Tensor], torch.Tensor], b: torch.Tensor, damping: float) -> torch.Tensor:
    """CG by hand, two reads an iteration, for the peer."""
    x, r = torch.zeros_like(b), b.clone()
    p, rr = r.clone(), r.dot(r).item()
    for _ in range(STEPS):
        q = product(p).add_(p, alpha=damping)
        alpha = rr / p.dot(q).item()
        x.add_(p, alpha=alpha)
        r.add_(q, alpha=-alpha)
        before, rr = rr, r.dot(r).item()
        p.mul_(rr / before).add_(r)
    return x


def cases(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, peers: bool, compiled: bool = True
) -> dict[str, Callable[[], Any]]:
    """What is timed for one network."""
    params = dict(model.named_parameters())
    loss = nn.CrossEntropyLoss()

    def gradient() -> Any:
        z = model(x)
        return torch.autograd.grad(loss(z.flatten(0, -2), y.flatten()), list(params.values()))

    objective = lg.Objective(model, lg.losses.CrossEntropy(), (x, y))
    G, H = lg.GGN(objective, params), lg.Hessian(objective, params)
    B = lg.BlockGGN(objective, params, blocks="layer")
    v = G.domain.random(0)

    def fresh() -> lg.Objective:
        return lg.Objective(model, lg.losses.CrossEntropy(), (x, y))

    def step(objective: lg.Objective) -> Any:
        ours = lg.GGN(objective, params)
        b = ours.domain.pack(objective.gradient(params))
        solution = lg.solve(lg.Damped(ours, DAMPING), b, lg.CG(steps=STEPS))
        assert solution.steps == STEPS, "an early end would not be a fair comparison"
        return solution.x

    found: dict[str, Callable[[], Any]] = {
        "gradient": gradient,
        "GGN product": lambda: G @ v,
        "Hessian product": lambda: H @ v,
        f"block GGN product ({len(B.blocks)} blocks)": lambda: B @ v,
        "linearise and gradient": lambda: fresh().gradient(params),
        "Gauss-Newton step": lambda: step(fresh()),
    }
    if compiled:
        programs = lg.Objective(model, lg.losses.CrossEntropy(), (x, y), compile=True)
        C, D = lg.GGN(programs, params), lg.Hessian(programs, params)
        found |= {
            "GGN product, compiled": lambda: C @ v,
            "Hessian product, compiled": lambda: D @ v,
            "linearise and gradient, compiled": lambda: programs.with_data((x, y)).gradient(params),
            "Gauss-Newton step, compiled": lambda: step(programs.with_data((x, y))),
        }
    if peers:
        found |= curvlinops_cases(model, x, y, v, gradient)
    return found


def curvlinops_cases(model: nn.Module, x: torch.Tensor, y: torch.Tensor, v: torch.Tensor, gradient: Any) -> Any:
    """The same with curvlinops."""
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    sequence = y.ndim > 1

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.model(x)
            return z.transpose(1, 2) if sequence else z

    net = Flat()
    named = [p for p in net.parameters() if p.requires_grad]
    data, loss = [(x, y)], nn.CrossEntropyLoss()
    options = {"check_deterministic": False}
    G = GGNLinearOperator(net, loss, named, data, **options)
    H = HessianLinearOperator(net, loss, named, data, **options)

    def step() -> Any:
        b = torch.cat([g.reshape(-1) for g in gradient()])
        ours = GGNLinearOperator(net, loss, named, data, **options)
        return plain_cg(lambda p: ours @ p, b, DAMPING)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        G @ v
    return {
        "GGN product, curvlinops": _math(lambda: G @ v),
        "Hessian product, curvlinops": _math(lambda: H @ v),
        "Gauss-Newton step, curvlinops": _math(step),
    }


def _math(case: Callable[[], Any]) -> Callable[[], Any]:
    """Fused attention has no second derivatives: the peer needs to be told."""

    def run() -> Any:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return case()

    return run


def few_outputs() -> dict[str, dict[str, Callable[[], Any]]]:
    """A step in the space of 320 outputs, products with nine blocks by layers and on the graph, and a small model."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    deep = nn.Sequential(*(m for a, b in pairwise([784, *[256] * 8, 10]) for m in (nn.Linear(a, b), nn.Tanh())))[:-1]
    return {
        "Gram step, 32 examples x 10": gram_cases(mlp),
        "nine blocks, 256 examples x 10": block_cases(deep),
        "u'' = f with 321 parameters, 64 points": small_cases(),
    }


def small_cases() -> dict[str, Callable[[], Any]]:
    """Products where the calls take as long as the arithmetic; by hand: double backward, written out."""
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    x, params = torch.linspace(0, 1, 64)[:, None], dict(net.named_parameters())
    leaves = [p.detach().requires_grad_() for p in params.values()]
    sizes = [p.numel() for p in leaves]

    def residuals(given: dict[str, torch.Tensor]) -> torch.Tensor:
        at = x.clone().requires_grad_()
        u = torch.func.functional_call(net, given, (at,))
        (slope,) = torch.autograd.grad(u.sum(), at, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), at, create_graph=True)
        return (bend + torch.sin(x)).reshape(-1)

    objective = lg.Objective.from_residuals(residuals)
    G, H = lg.GGN(objective, params), lg.Hessian(objective, params)
    v, r = G.domain.random(0), residuals(dict(zip(params, leaves, strict=True)))
    place = r.detach().clone().requires_grad_()
    slopes = torch.autograd.grad(r, leaves, place, create_graph=True, allow_unused=True)
    gradient = torch.autograd.grad(0.5 * r.square().sum(), leaves, create_graph=True, allow_unused=True)

    def pulled(outputs: Any, inputs: Any, cotangents: Any) -> Any:
        return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True)

    def flat(found: Any) -> torch.Tensor:
        made = (torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True))
        return torch.cat([g.reshape(-1) for g in made])

    def along(recorded: Any, inputs: Any) -> Any:
        parts = [part.view(p.shape) for part, p in zip(v.split(sizes), leaves, strict=True)]
        pairs = [(g, part) for g, part in zip(recorded, parts, strict=True) if g is not None and g.requires_grad]
        return pulled([g for g, _ in pairs], inputs, [part for _, part in pairs])

    def ggn() -> torch.Tensor:
        return flat(pulled(r, leaves, along(slopes, place)[0]))

    assert torch.allclose(ggn(), G @ v)
    return {
        "gradient": lambda: torch.autograd.grad(
            residuals(params).square().sum(), list(params.values()), allow_unused=True
        ),
        "GGN product": lambda: G @ v,
        "GGN product, by hand": ggn,
        "Hessian product": lambda: H @ v,
        "Hessian product, by hand": lambda: flat(along(gradient, leaves)),
    }


def fit_of(net: nn.Module, count: int) -> tuple[dict[str, Any], Callable[[], lg.Objective], Callable[[], Any]]:
    """Parameters, a function that makes an objective anew, and one of a plain gradient."""
    x, y, params = torch.randn(count, 784), torch.randint(10, (count,)), dict(net.named_parameters())
    plain = nn.CrossEntropyLoss()
    return (
        params,
        lambda: lg.Objective(net, lg.losses.CrossEntropy(), (x, y)),
        lambda: torch.autograd.grad(plain(net(x), y), list(params.values())),
    )


def gram_cases(net: nn.Module) -> dict[str, Callable[[], Any]]:
    """A step from K, and what it is made of."""
    params, made, gradient = fit_of(net, 32)
    point, (batch,) = made().at(params), made().batches
    by_hand = torch_step(net, batch.inputs, batch.targets, 1e-2)
    assert by_hand()[1] < 1e-4

    def step(solver: Any) -> Any:
        fresh = made()
        return lg.solve(lg.Damped(lg.GGN(fresh, params), 1e-2), fresh.gradient(params), solver)

    return {
        "gradient": gradient,
        "linearise and gradient": lambda: made().gradient(params),
        "K by layers": lambda: lg.Gram(point).known_matrix(),
        "Gram step": lambda: step(lg.GramSolve()),
        "Gram step by hand": by_hand,
        f"{STEPS} steps of CG": lambda: step(lg.CG(steps=STEPS)),
    }


def block_cases(net: nn.Module) -> dict[str, Callable[[], Any]]:
    """Products with blocks."""
    params, made, gradient = fit_of(net, 256)
    B = lg.BlockGGN(made(), params, blocks="layer")
    by_layers, graph, G, v = B.prepare(), B._products(), lg.GGN(B.point).prepare(), B.domain.random(0)
    return {
        "gradient": gradient,
        "GGN product": lambda: G.matvec(v),
        "block product by layers": lambda: by_layers.matvec(v),
        "block product on the graph": lambda: graph.matvec(v),
        "linearise, and layers": lambda: lg.BlockGGN(made(), params, blocks="layer").prepare(),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-peers", action="store_true", help="leave curvlinops out")
    parser.add_argument("--few", action="store_true", help="what few outputs allow, and nothing else")
    parser.add_argument("--no-compiled", action="store_true", help="leave compiled products out")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/torch_curvature.json, or ..._few")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, results = Console(), {}
    if options.few:
        tables = few_outputs()
    else:
        tables = {
            name: cases(*network, not options.no_peers, not options.no_compiled) for name, network in networks().items()
        }
    for name, timed in tables.items():
        timings = interleaved(timed, options.rounds)
        table = Table("", "multiples of a gradient", "quartiles", "ms", title=name)
        results[name] = {}
        for case in timings:
            ratio, low, high = timings.ratio(case, "gradient")
            table.add_row(case, f"{ratio:.2f}", f"{low:.2f} .. {high:.2f}", f"{1e3 * timings.median(case):.2f}")
            results[name][case] = {"gradients": ratio, "quartiles": [low, high], "seconds": timings.median(case)}
        console.print(table)
    if options.save:
        console.print(f"saved to {save('torch_curvature_few' if options.few else 'torch_curvature', results)}")


if __name__ == "__main__":
    main()
