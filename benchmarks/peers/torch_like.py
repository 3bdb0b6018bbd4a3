"""The conjugate gradients that curvlinops calls; its LSMR is SciPy's, for square operators."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from .face import Answer, Case, Run


def curvlinops_cg(case: Case) -> Run:
    """``CGInverseLinearOperator``: the conjugate gradients of linear_operator, as curvlinops calls them."""
    import torch
    from curvlinops import CGInverseLinearOperator
    from curvlinops._torch_base import PyTorchLinearOperator

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    data, b = tuple(torch.tensor(entries) for entries in case.data), torch.tensor(case.b)

    class Operator(PyTorchLinearOperator):
        SELF_ADJOINT = True
        device, dtype = b.device, b.dtype

        def _matmat(self, X: list[torch.Tensor]) -> list[torch.Tensor]:
            return [torch.stack([case.apply(v, *data) for v in X[0].unbind(1)], 1)]

    steps = case.max_steps
    options: dict[str, Any] = {"tolerance": 0.0 if case.fixed else case.rtol, "max_iter": steps}
    options["max_tridiag_iter"] = min(20, steps)  # of no use here, and refused where it is larger
    if case.x0 is not None:
        options["initial_guess"] = torch.tensor(case.x0)[:, None]
    if case.preconditioner is not None:
        d = torch.tensor(case.preconditioner)[:, None]
        options["preconditioner"] = lambda R: d * R
    inverse = CGInverseLinearOperator(Operator([(len(b),)], [(len(b),)]), **options)

    def call() -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return inverse @ b, [str(warning.message) for warning in caught]

    def read(found: Any) -> Answer:
        x, told = found
        told = [text for text in told if "terminated" in text]
        return Answer(
            x.numpy().astype(np.float64), not told, told[0].partition(" specified")[0] if told else "no warning"
        )

    return Run(call, read)
