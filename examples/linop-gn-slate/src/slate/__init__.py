"""slate: arrays on NumPy's memory that can be differentiated, any number of times, in reverse.

The module is an array-API namespace: what is not defined in here is NumPy's
function on the values, which has no derivative and says so.

>>> import slate
>>> x = slate.record(slate.asarray([1.0, 2.0]))
>>> y = slate.sum(x * x)
>>> slate.pull([(y, slate.asarray(1.0))], [x])
[slate.Array([2., 4.])]
"""

from types import SimpleNamespace

import numpy as np

from .arrays import Array, lifted, record
from .derivatives import pull
from .functions import (
    add,
    asarray,
    astype,
    broadcast_to,
    concat,
    cos,
    divide,
    exp,
    from_dlpack,
    log,
    matmul,
    multiply,
    negative,
    permute_dims,
    reshape,
    sin,
    stack,
    subtract,
    sum,  # noqa: A004
    tanh,
    where,
)

__version__ = "0.1.0"

__all__ = ["Array", "pull", "record"]
__all__ += [
    "add",
    "asarray",
    "astype",
    "broadcast_to",
    "concat",
    "cos",
    "divide",
    "exp",
    "from_dlpack",
    "log",
    "matmul",
]
__all__ += ["multiply", "negative", "permute_dims", "reshape", "sin", "stack", "subtract", "sum", "tanh", "where"]

linalg = SimpleNamespace(
    **{name: lifted(getattr(np.linalg, name)) for name in ("cholesky", "eigh", "inv", "qr", "solve")}
)


def __getattr__(name):
    value = getattr(np, name)
    return value if isinstance(value, type) or not callable(value) else lifted(value)
