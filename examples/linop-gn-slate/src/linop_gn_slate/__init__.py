"""slate as a backend of linop_gn: the array-API base, what slate does otherwise, and its derivatives."""

import slate

from linop_gn.backend import ArrayApiBackend, declared

from .calculus import SlateCalculus

__all__ = ["SlateBackend", "backend"]


class SlateBackend(ArrayApiBackend):
    """The one instance is :data:`backend`."""

    contract = 1  # of linop_gn.backend.CONTRACT: what this was written for
    capabilities = declared(__name__).capabilities

    def __init__(self):
        super().__init__("slate", slate, (slate.Array,))
        self.calculus = SlateCalculus()

    def to_numpy(self, x):
        """A copy on the host."""
        return x.numpy()

    def detach(self, tree):
        """The same numbers, belonging to no record."""
        _, leaves, structure = self.flatten(tree)
        return self.unflatten(structure, [slate.Array(x.value) if self.is_array(x) else x for x in leaves])


backend = SlateBackend()
