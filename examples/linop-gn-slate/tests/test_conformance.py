"""Every law that linop_gn holds its own backends to."""

from linop_gn_slate import backend

from linop_gn.testing import BackendConformance


class TestSlate(BackendConformance):
    """The kit on slate."""

    backend = backend
    capabilities = frozenset({"derivatives", "float64", "in_place", "trees", "views"})
