"""Linear operators: matrices that are reached only through products, and their algebra."""

from .algebra import Adjoint, Product, Scaled, Sum
from .base import LinearOperator
from .block import BlockDiagonal
from .damped import Damped, Identity
from .dense import Dense
from .diagonal import Diagonal
from .function import FunctionOperator
from .kronecker import KroneckerBlocks
from .low_rank import LowRank
from .submatrix import Submatrix

__all__ = [
    "Adjoint",
    "BlockDiagonal",
    "Damped",
    "Dense",
    "Diagonal",
    "FunctionOperator",
    "Identity",
    "KroneckerBlocks",
    "LinearOperator",
    "LowRank",
    "Product",
    "Scaled",
    "Submatrix",
    "Sum",
]
