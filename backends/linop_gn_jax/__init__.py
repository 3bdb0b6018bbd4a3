"""JAX as a backend of linop_gn: compiled loops, records as pytrees, derivatives from one linearisation.

Everything here works inside and outside the user's ``jit``, ``vmap`` and
``jvp``. Importing this module creates no array and starts no device.

>>> from linop_gn_jax import backend
>>> backend
<linop_gn backend 'jax'>
"""

from typing import Any

from linop_gn.backend import BackendDefaults, declared
from linop_gn.records import on_new_record

from .arithmetic import JaxArithmetic
from .arrays import JaxArrays
from .bases import JaxBases
from .calculus import JaxCalculus
from .compiled import all_unguarded, compilations, unguarded
from .factors import JaxFactors
from .loops import JaxLoops
from .losses import translated
from .parallel import JaxDevices
from .pytrees import register_record
from .stores import JaxStores

__all__ = ["JaxBackend", "backend"]


@all_unguarded
class JaxBackend(JaxArrays, JaxArithmetic, JaxFactors, JaxStores, JaxBases, JaxLoops, JaxDevices, BackendDefaults):
    """The one instance is :data:`backend`."""

    contract = 1
    capabilities = declared(__name__).capabilities

    def __init__(self) -> None:
        super().__init__()
        self.calculus = JaxCalculus()

    unguarded = staticmethod(unguarded)

    def loss_of(self, obj: Any) -> Any:
        """A loss function of optax in closed form: see :mod:`linop_gn_jax.losses`."""
        return translated(obj)

    def compilations(self) -> dict[str, int]:
        """How often each program was traced and compiled, by name."""
        return compilations()


on_new_record(register_record)
backend = JaxBackend()
