"""PyTorch: what Kronecker factors cost beside curvlinops', whether they agree, and what they save CG.

    python benchmarks/bench_kfac.py [--save] [--no-peers] [--rounds N]

The nets are those of ``bench_torch_curvature.py``; factors are made anew each time, model and data included. The last
table has the products that CG takes on damped Gauss-Newton operators after some training.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from itertools import product
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
from bench_torch_curvature import LanguageModel, networks
from rich.console import Console
from rich.table import Table
from timing import interleaved, save
from torch import nn

import linop_gn as lg

DAMPING = 1e-3


def ours(model: nn.Module, x: torch.Tensor, y: torch.Tensor, kind: Any = lg.KFAC, **options: Any) -> Any:
    """Kronecker factors, made anew."""
    made = kind(lg.Objective(model, lg.losses.CrossEntropy(), (x, y)), dict(model.named_parameters()), **options)
    made.prepare()
    return made


def theirs(model: nn.Module, x: torch.Tensor, y: torch.Tensor, fisher: str, corrected: bool = False) -> Any:
    """The same by curvlinops, its factors not yet made."""
    from curvlinops import EKFACLinearOperator, KFACLinearOperator

    return (EKFACLinearOperator if corrected else KFACLinearOperator)(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, y)],
        check_deterministic=False,
        fisher_type=fisher,
        separate_weight_and_bias=False,
        num_data=len(x),
        num_per_example_loss_terms=1,
    )


def cases(model: nn.Module, x: torch.Tensor, y: torch.Tensor, peers: bool) -> dict[str, Callable[[], Any]]:
    """What is timed for one network."""
    K = ours(model, x, y)
    M, v = K.inverse(DAMPING), K.domain.random(0)
    found: dict[str, Callable[[], Any]] = {
        "gradient": lambda: torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters())),
        "factors, type-2": lambda: ours(model, x, y),
        "factors, mc": lambda: ours(model, x, y, fisher="mc"),
        "EKFAC, type-2": lambda: ours(model, x, y, lg.EKFAC),
        "inverse": lambda: K.inverse(DAMPING),
        "product with the inverse": lambda: M @ v,
        "product": lambda: K @ v,
    }
    if peers:
        from curvlinops import KFACInverseLinearOperator

        T = theirs(model, x, y, "type-2")
        inverse = KFACInverseLinearOperator(T, damping=DAMPING, use_exact_damping=True)
        inverse @ v
        found |= {
            "factors, type-2, curvlinops": lambda: theirs(model, x, y, "type-2").compute_kronecker_factors(),
            "factors, mc, curvlinops": lambda: theirs(model, x, y, "mc").compute_kronecker_factors(),
            "EKFAC, type-2, curvlinops": lambda: theirs(model, x, y, "type-2", corrected=True) @ v,
            "product with the inverse, curvlinops": lambda: inverse @ v,
            "product, curvlinops": lambda: T @ v,
        }
    return found


class Pool(nn.Module):
    """The mean over an image's positions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def agreement() -> Table:
    """The largest relative difference of the matrices, over losses, reductions and two batches, in float64."""
    from curvlinops import KFACLinearOperator

    torch.manual_seed(0)
    nets = {
        "dense": (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)), (5,)),
        "convolution": (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)), (3, 6, 6)),
        "pooled": (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 2, 2), Pool(), nn.Linear(5, 3)),
            (3, 6, 6),
        ),
    }
    table = Table("net", "expand", "reduce", title="largest relative difference to curvlinops' KFAC")
    for name, (net, shape) in nets.items():
        row = []
        for sharing in ("expand", "reduce"):
            worst = 0.0
            for loss, reduction in product(("CrossEntropyLoss", "MSELoss", "BCEWithLogitsLoss"), ("mean", "sum")):
                data, criterion = [], getattr(nn, loss)(reduction=reduction)
                for n in (7, 3):
                    x, z = torch.randn(n, *shape).double(), torch.randn(n, 3).double()
                    data.append((x, {"CrossEntropyLoss": z.argmax(1), "MSELoss": z}.get(loss, (z > 0).double())))
                params = list(net.double().parameters())
                options = {"separate_weight_and_bias": False, "check_deterministic": False, "kfac_approx": sharing}
                T = KFACLinearOperator(net, criterion, params, data, fisher_type="type-2", **options)
                theirs = T @ torch.eye(sum(p.numel() for p in params)).double()
                found = lg.KFAC(lg.Objective(net, criterion, data), net, sharing=sharing).to_dense()
                worst = max(worst, float((found - theirs).norm() / theirs.norm()))
            row.append(f"{worst:.1e}")
        table.add_row(name, *row)
    return table


def problems() -> dict[str, tuple[nn.Module, torch.Tensor, torch.Tensor, tuple[float, ...]]]:
    """A classifier and a small transformer, each after some training, and dampings."""
    torch.manual_seed(0)
    x = torch.randn(1000, 64)
    y = (x @ torch.randn(64, 10) + 0.5 * torch.randn(1000, 10)).argmax(1)
    dense = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    tokens = (torch.randint(8, (64, 1)) + torch.randint(1, 4, (64, 1)) * torch.arange(9)) % 8
    small = LanguageModel(vocabulary=8, width=8, heads=2, blocks=1)
    made = {
        "classifier": (dense, x, y, (1e-2, 1e-4, 1e-6)),
        "transformer": (small, tokens[:, :-1], tokens[:, 1:], (1e-2, 1e-4)),
    }
    for model, x, y, _ in made.values():
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(200):
            part = torch.randint(len(x), (32,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[part]).flatten(0, -2), y[part].flatten()).backward()
            optimiser.step()
    return made


def saved() -> Table:
    """Products of CG to a relative residual of 1e-3, the right-hand side the gradient."""
    recipes = lg.preconditioners
    table = Table(
        "net", "damping", "none", "Jacobi", "KFAC, mc", "KFAC", "EKFAC", "exact blocks", title="products of CG"
    )
    for name, (model, x, y, dampings) in problems().items():
        f = lg.Objective(model, lg.losses.CrossEntropy(), (x, y))
        params = {key: p.detach() for key, p in model.named_parameters()}
        G, g = lg.GGN(f, params), f.gradient(params)
        tried = (
            None,
            recipes.Jacobi("estimate", probes=50),
            recipes.KFAC(fisher="mc"),
            recipes.KFAC(),
            recipes.KFAC(corrected=True),
            recipes.BlockJacobi(dense=1000) if name == "transformer" else "too large",
        )
        for damping in dampings:
            solver = lg.CG(rtol=1e-3, max_steps=3000)
            row = []
            for M in tried:
                if isinstance(M, str):
                    row.append(M)
                    continue
                found = lg.solve(lg.Damped(G, damping), g, lg.replace(solver, preconditioner=M))
                row.append(f"{found.steps}{'' if found.succeeded else '!'}")
            table.add_row(name, f"{damping:g}", *row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write results/kfac.json")
    parser.add_argument("--no-peers", action="store_true", help="leave curvlinops out")
    parser.add_argument("--rounds", type=int, default=11)
    given, console, kept = parser.parse_args(), Console(), {}
    nets = {name: net for name, net in networks().items() if "transformer" not in name}
    for name, (model, x, y) in nets.items():
        times = interleaved(cases(model, x, y, not given.no_peers), given.rounds)
        table = Table("", "ms", "gradients", "of curvlinops'", title=name)
        for case in times:
            if "curvlinops" in case:
                continue
            peer = f"{case}, curvlinops"
            ratio = f"{times.ratio(case, peer)[0]:.2f}" if peer in times else ""
            table.add_row(case, f"{1e3 * times.median(case):.2f}", f"{times.ratio(case, 'gradient')[0]:.2f}", ratio)
        console.print(table)
        kept[name] = {case: times.median(case) for case in times}
    for title, make in (("agreement", None if given.no_peers else agreement), ("CG", saved)):
        if make is not None:
            table = make()
            console.print(table)
            kept[title] = [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]
    if given.save:
        save("kfac", kept)


if __name__ == "__main__":
    main()
