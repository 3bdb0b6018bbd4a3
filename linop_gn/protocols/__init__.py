"""The contract between the toolkit and an array framework.

``linop_gn`` itself imports no framework. Everything it needs of one is named
here, in groups that a :class:`Backend` brings together:

=============== ============================================================
:class:`Arrays`      recognise, flatten, pack and convert arrays and trees
:class:`Arithmetic`  the few vector and scalar operations a solver is made of
:class:`Factors`     dense matrices and their factorisations, for small systems
:class:`Stores`      room for past scalars and vectors, at indices known only in the run
:class:`Bases`       a basis of vectors as the rows of an array, and small problems in it
:class:`Loops`       call, advance and iterate pure functions
:class:`Calculus`    linearise a function (optional: NumPy and CuPy have none)
:class:`Processes`   groups of processes, where the framework has them
=============== ============================================================

**Scalars belong to the backend.** ``dot`` returns a Python float where work is
done eagerly, a traced 0-d array in JAX, and an array ``(k,)`` for ``k`` columns.
Solver code therefore never writes ``if``, ``and`` or ``not`` on a scalar: it
asks :meth:`Arithmetic.where`, ``&``, ``|`` and :meth:`Arithmetic.logical_not`.

**Vector updates consume their last argument.** After ``z = ops.axpy(a, x, y)``
the array ``y`` must not be read again: eager backends have overwritten it.
All other arguments are left alone.
"""

from .arithmetic import Arithmetic, unchanged
from .arrays import Arrays, Product
from .backend import CAPABILITIES, CONTRACT, Backend
from .bases import Bases
from .calculus import Calculus, Compiled, Composed, GradientLinearization, Linearization, Outer
from .factors import Factors
from .loops import Carry, Iteration, Loops, leave_with
from .processes import Processes
from .stores import Stores
from .types import Array, Scalar, Tree, Vector
from .uses import Use, Uses, View

__all__ = [
    "CAPABILITIES",
    "CONTRACT",
    "Arithmetic",
    "Array",
    "Arrays",
    "Backend",
    "Bases",
    "Calculus",
    "Carry",
    "Compiled",
    "Composed",
    "Factors",
    "GradientLinearization",
    "Iteration",
    "Linearization",
    "Loops",
    "Outer",
    "Processes",
    "Product",
    "Scalar",
    "Stores",
    "Tree",
    "Use",
    "Uses",
    "Vector",
    "View",
    "leave_with",
    "unchanged",
]
