"""The conformance kit on CuPy: on the current device, and on another one than the current."""

import pytest

import linop_gn as lg
from linop_gn.testing.conformance import BackendConformance, check_backend, laws

WORKS_ON_ARRAYS_ITSELF = {"namespace", "steps_are_total", "consumed_vectors_are_not_read_again"}
"""Laws that compute outside the backend, where CuPy wants the device made current."""


@pytest.mark.usefixtures("ops")
class TestCupy(BackendConformance):
    backend = property(lambda self: lg.load("cupy"))
    capabilities = frozenset({"devices", "float64", "in_place", "trees", "views"})


def test_arrays_of_another_device_than_the_current_one(ops, second):
    report = check_backend(
        ops,
        array=lambda host, dtype: ops.asarray(host, dtype, second),
        only=[law for law in laws() if law not in WORKS_ON_ARRAYS_ITSELF],
    )
    assert not report.failed, str(report)
