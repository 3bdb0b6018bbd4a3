"""The checks in order: what each compares, and what a failure means."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import algebra, conduct, curvature
from .measure import BELOW_FLOAT64, DIFFERENCES, Found
from .subject import Subject

__all__ = ["LAWS", "Law"]


class Law(NamedTuple):
    """A check: its name, what it compares, the function that measures it, and what a failure means."""

    name: str
    measures: str
    check: Callable[[Subject], Found]
    advice: str
    oracle: bool = False
    """Whether it compares with something that was computed in another way."""
    floor: float = 0.0
    steady: bool = False
    """Whether last bits of the parameters play no part in it."""
    exact: bool = False
    """The error is a count, and has to be 0."""
    after: tuple[str, ...] = ("finite", "determinism")
    """Checks without which this one means nothing: it is skipped if one of them failed."""

    def allowed(self, subject: Subject, uncertainty: float) -> float:
        """The tolerance."""
        room = BELOW_FLOAT64 if self.oracle and subject.roomy else 1.0
        if self.exact:
            return 0.0
        wobble = 0.0 if self.steady else subject.wobble
        return max(room * subject.tolerance, self.floor, 2 * wobble) + 10 * uncertainty


LAWS = (
    Law(
        "finite",
        "products with random vectors are finite",
        algebra.finite,
        "A product holds NaN or infinity. Look for overflow, a square root or norm at exactly 0, a logarithm of 0, a "
        "masked where() whose other branch is not finite, or parameters that have already diverged.",
        exact=True,
        after=(),
    ),
    Law(
        "determinism",
        "products repeated, and linearised anew",
        conduct.determinism,
        "The same product, taken twice, differs: the function keeps state or draws random numbers in each product. "
        "Make it a pure function of the vector and its arguments.",
        steady=True,
        after=("finite",),
    ),
    Law(
        "inputs",
        "arrays given that were written to",
        conduct.inputs,
        "A product wrote to an array that is not its own; solvers then compute with spoilt vectors. Copy before "
        "operations in place (x += ..., out=, relu_).",
        exact=True,
    ),
    Law(
        "aliasing",
        "products that share memory",
        conduct.aliasing,
        "A product must be a new array, which the caller may overwrite: return a copy, not the input, a view of it, or "
        "a buffer that the operator keeps.",
        exact=True,
        after=("finite", "determinism", "inputs"),
    ),
    Law(
        "linearity",
        "A (a v + b w) and a A v + b A w",
        algebra.linearity,
        "The product is not linear in the vector. Of a function, pass its linearisation (a JVP), not the function; "
        "look for clipping, normalisation, affine terms or a product rounded to a coarser dtype.",
    ),
    Law(
        "adjoint",
        "<u, A v> and <A^T u, v>",
        algebra.adjoint,
        "rmatvec is not the adjoint of matvec: a missing transpose, a sign, a factor, or a boundary row. For a pair "
        "jvp=, vjp= both have to be taken at the same parameters and inputs.",
    ),
    Law(
        "symmetry",
        "<u, A v> and <v, A u>",
        algebra.symmetry,
        "It claims to be symmetric and is not. Leave symmetric=True out and give the adjoint product, or look for a "
        "J and a J^T that were not taken at the same point; CG and Lanczos are wrong for such an operator.",
    ),
    Law(
        "psd",
        "v^T A v >= 0, over the largest eigenvalue",
        algebra.psd,
        "It claims to be positive semi-definite and is not. Leave psd=True out, add damping larger than the most "
        "negative eigenvalue, or check that the loss, if it promises convex, is convex in the outputs.",
        oracle=True,
    ),
    Law(
        "columns",
        "A V and its columns one at a time",
        conduct.columns,
        "matmat differs from matvec on each column: usually an axis that broadcasts the wrong way. Remove matmat (the "
        "base class applies matvec to each column) or mend it.",
        after=("finite", "determinism", "aliasing"),
    ),
    Law(
        "formats",
        "tree, flat vector and columns",
        conduct.formats,
        "A @ v depends on the format of v, or comes back in another shape, dtype or device. Products are flat vectors "
        'of the codomain; check that function returns those (on="flat") or trees like it (on="tree").',
        after=("finite", "determinism", "aliasing"),
    ),
    Law(
        "dense",
        "products and the matrix assembled in float64",
        curvature.dense,
        "The products are not those of the matrix J^T H_L J (or Hessian) of this objective. If gradient fails too, the "
        "loss's or the supplied first derivative is wrong. If differences fails too, a second derivative is: a loss's "
        "closed form, a custom backward rule. If neither does, look at how batches, blocks and weights are summed, or "
        "at a GPU that multiplies in TF32.",
        oracle=True,
    ),
    Law(
        "differences",
        "products and central differences",
        curvature.differences,
        "The products are not the derivative that central differences of this function find: a custom backward rule, a "
        "supplied jvp, or a framework's own rule is wrong (torch.func.hessian and jvp of jacrev are, on normalisation "
        "layers). linop_gn's own operators avoid those; otherwise report it with the layer.",
        oracle=True,
        floor=DIFFERENCES,
    ),
    Law(
        "gradient",
        "value and gradient, and central differences",
        curvature.gradient,
        "The gradient is not that of the value: look at vjp= or jacobian= and at the loss's gradient, the weights and "
        "who divides by their sum.",
        oracle=True,
        floor=DIFFERENCES,
    ),
    Law(
        "batches",
        "all batches, and their union in one",
        curvature.batches,
        "The sum over batches is not that over their union: each batch has to count by the weight of its examples, "
        "divided once by the total. An average of averages is right for equal batches only. A loss that couples the "
        "examples of a batch cannot be split.",
        oracle=True,
    ),
)
"""The checks, in order."""
