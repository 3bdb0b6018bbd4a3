"""PyTorch: what Kronecker factors cost beside curvlinops', whether they agree, and what they save CG.

    python benchmarks/bench_kfac.py [--save] [--no-peers] [--rounds N]

The nets are those of ``bench_torch_curvature.py``; factors are made anew each time, model and data included. The last
table has the products that CG takes on the damped Gauss-Newton operator of a small transformer, after some training.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
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


def theirs(model: nn.Module, x: torch.Tensor, y: torch.Tensor, fisher: str) -> Any:
    """The same by curvlinops."""
    from curvlinops import KFACLinearOperator

    made = KFACLinearOperator(
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
    made.compute_kronecker_factors()
    return made


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
        from curvlinops import EKFACLinearOperator, KFACInverseLinearOperator

        T = theirs(model, x, y, "type-2")
        inverse = KFACInverseLinearOperator(T, damping=DAMPING, use_exact_damping=True)
        inverse @ v

        def ekfac() -> Any:
            made = EKFACLinearOperator(
                model,
                nn.CrossEntropyLoss(),
                list(model.parameters()),
                [(x, y)],
                check_deterministic=False,
                fisher_type="type-2",
                separate_weight_and_bias=False,
                num_data=len(x),
                num_per_example_loss_terms=1,
            )
            return made @ v

        found |= {
            "factors, type-2, curvlinops": lambda: theirs(model, x, y, "type-2"),
            "factors, mc, curvlinops": lambda: theirs(model, x, y, "mc"),
            "EKFAC, type-2, curvlinops": ekfac,
            "product with the inverse, curvlinops": lambda: inverse @ v,
            "product, curvlinops": lambda: T @ v,
        }
    return found


def agreement(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The largest relative difference of a product with a random vector, in float64."""
    model, x = model.double(), x.double()
    K, T = ours(model, x, y), theirs(model, x, y, "type-2")
    v = K.domain.random(0)
    mine, other = K @ v, T @ v
    model.float()
    return float((mine - other).norm() / other.norm())


def transformer() -> tuple[lg.Objective, dict[str, torch.Tensor]]:
    """A language model of 440,000 parameters on 16 sequences, trained a little on a text with a rule."""
    torch.manual_seed(0)
    model = LanguageModel(vocabulary=64, width=96, heads=4, blocks=2)
    steps = torch.randint(1, 4, (256, 1))
    tokens = (torch.randint(64, (256, 1)) + steps * torch.arange(33)) % 64
    x, y = tokens[:, :-1], tokens[:, 1:]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for i in range(60):
        part = slice(16 * (i % 16), 16 * (i % 16) + 16)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[part]).flatten(0, 1), y[part].flatten()).backward()
        optimiser.step()
    objective = lg.Objective(model, lg.losses.CrossEntropy(), (x[:16], y[:16]))
    return objective, {name: p.detach() for name, p in model.named_parameters()}


def saved(dampings: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)) -> Table:
    """Products of CG to a relative residual of 1e-3."""
    f, params = transformer()
    g, recipes = f.gradient(params), lg.preconditioners
    table = Table("damping", "none", "Jacobi", "KFAC, mc", "KFAC, type-2", "EKFAC", title="CG on a transformer's GGN")
    for damping in dampings:
        A, row = lg.Damped(lg.GGN(f, params), damping), []
        for recipe in (
            None,
            recipes.Jacobi(probes=20),
            recipes.KFAC(fisher="mc"),
            recipes.KFAC(),
            recipes.KFAC(corrected=True),
        ):
            found = lg.solve(A, g, lg.CG(rtol=1e-3, max_steps=2000, preconditioner=recipe))
            row.append(f"{found.steps}{'' if found.status.succeeded else ' ' + found.status.name}")
        table.add_row(f"{damping:g}", *row)
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
        if not given.no_peers:
            kept[name]["difference"] = agreement(model, x, y)
            console.print(f"relative difference of a product: {kept[name]['difference']:.1e}")
    table = saved()
    console.print(table)
    kept["CG"] = [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]
    if given.save:
        save("kfac", kept)


if __name__ == "__main__":
    main()
