"""Faults that only make sense where programs are compiled: the kit finds them in JAX."""

import pytest

import linop_gn as lg

conformance = pytest.importorskip("linop_gn.testing.conformance")
jnp = pytest.importorskip("jax.numpy")
Jax = type(lg.load("jax"))


class AdvanceTakesOneStepMore(Jax):
    def advance(self, method, problem, carry, steps):
        return super().advance(method, problem, carry, steps + 1)


class CallForgetsWhatIsStatic(Jax):
    def __init__(self):
        super().__init__()
        self.first = {}

    def call(self, function, *records):
        if not records or not hasattr(records[0], "shift"):
            return super().call(function, *records)
        first = self.first.setdefault(function, records[0])
        return super().call(function, lg.replace(records[0], shift=first.shift), *records[1:])


class SumLosesTheLast(Jax):
    def sum_over(self, function, stacked, *shared):
        return super().sum_over(function, {name: leaf[:-1] for name, leaf in stacked.items()}, *shared)


class RowsAreShifted(Jax):
    def rows(self, carry, start, stop):
        return super().rows(carry, max(0, start - 1), stop - (start > 0))


class ScalarsAreSingle(Jax):
    def scalar(self, value, like):
        return super().scalar(value, like.astype("float32"))


class HidesThatItCompiles(Jax):
    capabilities = Jax.capabilities - {"compiled"}


@pytest.mark.parametrize(
    ("backend", "law"),
    [
        (AdvanceTakesOneStepMore, "advance"),
        (CallForgetsWhatIsStatic, "call"),
        (SumLosesTheLast, "sum_over_and_scan_over"),
        (RowsAreShifted, "rows"),
        (ScalarsAreSingle, "a_scalar_keeps_its_digits"),
        (HidesThatItCompiles, "claims_compiled"),
    ],
)
def test_a_broken_law_fails(backend, law):
    report = conformance.check_backend(backend(), only=[law])
    assert report.failed == (law,), report
