"""The kit finds a backend with one wrong law, and names the law: faults planted one at a time."""

import functools
import math

import numpy as np
import pytest
from systems import FULL

import linop_gn as lg
from linop_gn import Status
from linop_gn.protocols import Carry, unchanged

conformance = pytest.importorskip("linop_gn.testing.conformance")
Numpy = type(lg.load("numpy"))
RUNNING = int(Status.RUNNING)

FAULTS = {}
tried = None


def being_tried():
    return tried


class Sound(Numpy):
    """NumPy under another class, without a fault."""

    def __reduce__(self):
        return being_tried, ()


def fault(law):
    """Keep a backend in which ``law`` is the first that fails."""

    def keep(cls):
        FAULTS[cls.__name__] = cls, law
        return cls

    return keep


def check(backend, **options):
    """What the kit says while NumPy's arrays belong to ``backend``."""
    global tried
    tried, kinds = backend, (np.ndarray, np.float64, np.float32)
    try:
        for kind in kinds:
            lg.register(kind, backend)
        return conformance.check_backend(backend, **options)
    finally:
        tried = None
        for kind in kinds:
            lg.register(kind, lg.load("numpy"))


# memory


@fault("alone")
class EveryResultIsAlone(Sound):
    def alone(self, make):
        return make(), True


# updates


@fault("axpy")
class AxpyModifiesX(Sound):
    def axpy(self, a, x, y):
        x *= a
        y += x
        return y


@fault("updates_share_nothing")
class AxpyReturnsAnAliasOfX(Sound):
    def axpy(self, a, x, y):
        if type(a) is float and a == 1.0 and not y.any():
            return x
        return super().axpy(a, x, y)


@fault("axpby")
class AxpbyReturnsAStaleBuffer(Sound):
    def __init__(self):
        super().__init__()
        self.buffers = {}

    def axpby(self, a, x, b, y):
        result = super().axpby(a, x, b, y)
        kept = self.buffers.setdefault((result.shape, result.dtype), result)
        kept[...] = result
        return kept


@fault("claims_in_place")
class AxpyDoesNotConsume(Sound):
    def axpy(self, a, x, y):
        return super().axpy(a, x, y.copy())


@fault("subtract")
class SubtractTheOtherWayRound(Sound):
    def subtract(self, x, y):
        return super().scale(-1.0, super().subtract(x, y))


@fault("axpby")
class AxpbyOfOneFactorForAllColumns(Sound):
    def axpby(self, a, x, b, y):
        return super().axpby(a.flat[0] if isinstance(a, np.ndarray) and a.ndim else a, x, b, y)


@fault("updates_of_awkward_numbers")
class AFactorOfZeroHidesNaN(Sound):
    def axpy(self, a, x, y):
        return y if isinstance(a, float) and a == 0 else super().axpy(a, x, y)


@fault("scale")
class ScaleChangesThePrecision(Sound):
    def scale(self, a, x):
        return x.astype("float64") * a if x.dtype == "float32" else super().scale(a, x)


# reductions


@fault("dot_of_half_precision")
class DotInHalfPrecision(Sound):
    def dot(self, x, y):
        return float(np.sum(x * y, dtype="float16")) if x.dtype == "float16" and x.ndim == 1 else super().dot(x, y)


@fault("dot")
class DotInSinglePrecision(Sound):
    def dot(self, x, y):
        return super().dot(x.astype("float32"), y.astype("float32"))


@fault("dot_of_many_entries")
class DotInOneChain(Sound):
    def dot(self, x, y):
        return float(np.cumsum(x * y)[-1]) if x.ndim == 1 and x.size else super().dot(x, y)


@fault("dot")
class DotTakesColumnsAsOne(Sound):
    def dot(self, x, y):
        total = super().dot(x, y)
        return np.full_like(total, total.sum()) if np.ndim(total) else total


@fault("reductions_show_what_is_not_finite")
class MaxAbsSkipsNaN(Sound):
    def max_abs(self, x):
        return super().max_abs(np.nan_to_num(x, nan=0.0, posinf=math.inf, neginf=-math.inf))


@fault("zeros_like")
class ZerosAreShared(Sound):
    @functools.lru_cache  # noqa: B019
    def _kept(self, shape, dtype):
        return np.zeros(shape, dtype)

    def zeros_like(self, x):
        return self._kept(x.shape, x.dtype)


@fault("copy")
class CopiesOfColumnsAreTheSame(Sound):
    def copy(self, x):
        return x if x.ndim == 2 else super().copy(x)


@fault("eps")
class EpsOfDoublePrecision(Sound):
    def eps(self, x):
        return 2.0**-52


# scalars


@fault("divide")
class DivideRaises(Sound):
    def divide(self, x, y):
        return x / y


@fault("sqrt")
class SqrtRaises(Sound):
    def sqrt(self, x):
        return super().sqrt(x) if isinstance(x, np.ndarray) else math.sqrt(x)


@fault("minimum_and_maximum")
class MinimumDropsNaN(Sound):
    def minimum(self, x, y):
        return np.fmin(x, y) if isinstance(x, np.ndarray) else min(y, x)


@fault("power_of_two")
class PowerOfTwoIsRounded(Sound):
    def power_of_two(self, x, like):
        return super().power_of_two(1.2 * x, like)


@fault("power_of_two_has_an_inverse")
class PowerOfTwoIsSubnormal(Sound):
    def _exponent_limit(self, like):
        return 1100


@fault("where_of_codes")
class CodesBecomeFloats(Sound):
    def where(self, condition, x, y):
        made = super().where(condition, x, y)
        return made * 1.0 if isinstance(made, np.ndarray) else made


@fault("plain_numbers_among_scalars")
class MaximumForgetsThatColumnsMayBeOnTheRight(Sound):
    def maximum(self, x, y):
        return super().maximum(x, y) if isinstance(x, np.ndarray) or not isinstance(y, np.ndarray) else y


@fault("item")
class ItemIsRounded(Sound):
    def item(self, x):
        return float(np.float32(x))


# choices


@fault("mask")
class MaskMultiplies(Sound):
    def mask(self, condition, x):
        return x * np.asarray(condition, x.dtype)


@fault("select")
class SelectByTheFirstColumn(Sound):
    def select(self, condition, x, y):
        return super().select(bool(np.ravel(condition)[0]), x, y)


@fault("branch")
class BranchSharesItsOperands(Sound):
    def branch(self, condition, then, otherwise, *operands):
        if not isinstance(condition, np.ndarray) or condition.all() or not condition.any():
            return super().branch(condition, then, otherwise, *operands)
        pairs = zip(then(*operands), otherwise(*operands), strict=True)
        return tuple(np.where(condition, x, y) for x, y in pairs)


@fault("branch_or_unchanged")
class BranchWritesOverWhatIsUnchanged(Sound):
    def branch(self, condition, then, otherwise, *operands):
        if otherwise is not unchanged or not isinstance(condition, np.ndarray):
            return super().branch(condition, then, otherwise, *operands)
        return tuple(np.where(condition, x, y) for x, y in zip(then(*operands), operands, strict=True))


@fault("branch_runs_one_side")
class BranchRunsBothSides(Sound):
    def branch(self, condition, then, otherwise, *operands):
        kept = [self.copy(x) if self.is_array(x) else x for x in operands]
        otherwise(*kept) if condition is True else None
        return super().branch(condition, then, otherwise, *operands)


# arrays and trees


@fault("asarray_copies")
class AsarrayAliasesTheHost(Sound):
    def asarray(self, host, dtype, device=None):
        return np.asarray(host, dtype=dtype)


@fault("claims_float64")
class AsarrayNarrows(Sound):
    def asarray(self, host, dtype, device=None):
        return super().asarray(super().asarray(host, dtype if dtype != "float64" else "float32"), dtype, device)


@fault("asarray")
class DevicesChange(Sound):
    def describe(self, x):
        shape, dtype, device = super().describe(x)
        return shape, dtype, "cpu:1" if dtype == "int32" else device


@fault("cast")
class CastForgetsTheDtype(Sound):
    def cast(self, x, dtype):
        return x if dtype == "float32" else super().cast(x, dtype)


@fault("read")
class ReadReturnsItsOwnArrays(Sound):
    def read(self, tree):
        return tree["x"].view(type("Device", (np.ndarray,), {})) if isinstance(tree, dict) else super().read(tree)


@fault("pack_and_unpack")
class PackLosesDigits(Sound):
    def pack(self, leaves, dtype):
        return super().pack([leaf.astype("float32") for leaf in leaves], dtype)


@fault("pack_copies")
class PackAliasesASingleLeaf(Sound):
    def pack(self, leaves, dtype):
        alone = len(leaves) == 1 and leaves[0].size > 50
        return leaves[0].reshape(-1) if alone else super().pack(leaves, dtype)


@fault("pack_and_unpack")
class SplitInReverse(Sound):
    def split(self, vector, shapes, dtypes):
        return super().split(vector, shapes[::-1], dtypes[::-1])[::-1]


@fault("claims_views")
class SplitCopies(Sound):
    def split(self, vector, shapes, dtypes):
        return [leaf.copy() for leaf in super().split(vector, shapes, dtypes)]


@fault("names")
class LeavesAreNumbered(Sound):
    def flatten(self, tree):
        names, leaves, structure = super().flatten(tree)
        return [name and str(i) for i, name in enumerate(names)], leaves, structure


# loops


@fault("advance")
class AdvanceTakesOneStepMore(Sound):
    def advance(self, method, problem, carry, steps):
        return super().advance(method, problem, carry, steps + (steps > 2))


@fault("begin")
class TheFirstRowIsMissing(Sound):
    def begin(self, method, problem, capacity):
        return Carry(super().begin(method, problem, capacity).state, [])


@fault("advance")
class ARowIsMissing(Sound):
    def advance(self, method, problem, carry, steps):
        made = super().advance(method, problem, carry, steps)
        return Carry(made.state, made.rows[:3] + made.rows[4:])


@fault("advance")
class AdvanceStepsPastTheEnd(Sound):
    def advance(self, method, problem, carry, steps):
        if np.any(np.equal(carry.state.status, RUNNING)):
            return super().advance(method, problem, carry, steps)
        return Carry(carry.state._replace(x=0.5 * carry.state.x), carry.rows)


@fault("stop_and_re_enter")
class AdvanceOverwritesAStatus(Sound):
    def advance(self, method, problem, carry, steps):
        status = np.asarray(carry.state.status)
        if not np.any(status == RUNNING) and np.any(status == int(Status.STOPPED)):
            status = np.where(status == int(Status.STOPPED), RUNNING, status)
            carry = carry._replace(state=carry.state._replace(status=status if status.ndim else int(status)))
        return super().advance(method, problem, carry, steps)


@fault("run")
class RunLosesTheStatus(Sound):
    def run(self, method, problem, capacity):
        carry = super().run(method, problem, capacity)
        return carry._replace(state=carry.state._replace(status=0 * carry.state.status))


@fault("run")
class RunStopsAtItsCapacityInTicks(Sound):
    def run(self, method, problem, capacity):
        return self.advance(method, problem, self.begin(method, problem, capacity), capacity)


@fault("iterate")
class IterateEndsEarly(Sound):
    def iterate(self, method, problem):
        return self.advance(method, problem, self.begin(method, problem, 8), 3).state


@fault("begin")
class RowsTakeOneColumnForAll(Sound):
    def rows(self, carry, start, stop):
        made = super().rows(carry, start, stop)
        return made if made.ndim == 2 else np.broadcast_to(made[..., :1], made.shape)


@fault("begin")
class RowsInReverse(Sound):
    def rows(self, carry, start, stop):
        return super().rows(carry, start, stop)[:, ::-1]


@fault("sum_over_and_scan_over")
class SumLosesTheLast(Sound):
    def sum_over(self, function, stacked, *shared):
        return super().sum_over(function, stacked[:-1] if isinstance(stacked, range) else stacked, *shared)


@fault("sum_over_and_scan_over")
class ScanKeepsBackwards(Sound):
    def scan_over(self, function, stacked, *shared):
        total, kept = super().scan_over(function, stacked, *shared)
        return total, None if kept is None else kept[::-1]


@fault("operator_of")
class TakesEverythingForAnOperator(Sound):
    def operator_of(self, obj, like, symmetric, psd):
        return lg.Identity(lg.Space.flat(1, np.ones(1)))


@fault("identity")
class NamesNoContract(Sound):
    contract = None


@fault("over_columns")
class ColumnsAsOne(Sound):
    def over_columns(self, function, columns):
        return np.stack([function(columns[:, 0])] * columns.shape[1], axis=1)


@fault("over_rows")
class RowsAsOne(Sound):
    def over_rows(self, function, rows, together=1):
        return [np.stack([part] * len(rows)) for part in function(rows[0])]


@fault("same")
class SameWhereNaNIs(Sound):
    def same(self, x, y):
        return np.array_equal(x, y, equal_nan=True)


@fault("laid")
class LaysTheTransposeOfAProduct(Sound):
    def laid(self, pieces):
        return super().laid([lg.backend.Product(x.right.T, x.left.T) if isinstance(x, tuple) else x for x in pieces])


@fault("call")
class CallKeepsTheFirstResult(Sound):
    def __init__(self):
        super().__init__()
        self.results = {}

    def call(self, function, *records):
        key = function.__name__
        return self.results.setdefault(key, function(*records)).copy() if key == "_value" else function(*records)


# stores and factors


@fault("tables")
class ColumnsShareAnIndex(Sound):
    def write(self, table, index, value):
        return super().write(table, index if np.ndim(index) == 0 else np.full_like(index, index[0]), value)


@fault("shelves")
class ShelvesKeepWhatIsTheUsers(Sound):
    def put(self, shelf, index, value, wanted):
        if np.ndim(index) == 0 and wanted:
            shelf[1 + index] = value
            return shelf
        return super().put(shelf, index, value, wanted)


@fault("syrk")
class ProductOfColumns(Sound):
    def syrk(self, x):
        return (x.T @ x)[: x.shape[0], : x.shape[0]]


@fault("zeros_and_identity")
class ZerosHaveNoColumns(Sound):
    def zeros(self, size, like):
        return np.zeros(size, like.dtype)


@fault("what_has_no_factor")
class CholeskyRaises(Sound):
    def cholesky(self, matrix):
        return np.linalg.cholesky(matrix), True


@fault("lu")
class LUSolvesWithTheTranspose(Sound):
    def lu(self, matrix):
        return super().lu(matrix.T)


@fault("upper_solve")
class SolvesWithTheLowerTriangle(Sound):
    def upper_solve(self, R, b):
        return np.linalg.solve(R.T, b)


@fault("eigh")
class EigenvaluesDescend(Sound):
    def eigh(self, matrix):
        values, vectors, found = super().eigh(matrix)
        return values[::-1], vectors[:, ::-1], found


# what is claimed


@fault("claims_in_place")
class ColumnsAreNotConsumed(Sound):
    def axpby(self, a, x, b, y):
        return super().axpby(a, x, b, y.copy() if y.ndim == 2 else y)


@fault("capabilities")
class ClaimsChange(Sound):
    asked = 0

    @property
    def capabilities(self):
        ClaimsChange.asked += 1
        more = (set(), {"compiled"}, {"compiled", "devices"})
        return Numpy.capabilities | more[ClaimsChange.asked % 3]


@fault("claims_derivatives")
class ClaimsDerivatives(Sound):
    capabilities = Numpy.capabilities | {"derivatives"}


@fault("claims_compiled")
class ClaimsToCompile(Sound):
    capabilities = Numpy.capabilities | {"compiled"}


@fault("claims_in_place")
class HidesThatItWritesInPlace(Sound):
    capabilities = Numpy.capabilities - {"in_place", "views"}


@fault("claims_devices")
class HidesDevices(Sound):
    def devices(self):
        return ["cpu", "cpu:1"]


@fault("identity")
class CopiesAreOthers(Sound):
    def __reduce__(self):
        return type(self), ()


def test_a_sound_backend_passes():
    report = check(Sound())
    assert report.passed, report


class Single(Sound):
    """Without float64, as some accelerators are."""

    capabilities = Numpy.capabilities - {"float64"}

    def asarray(self, host, dtype, device=None):
        if dtype == "float64":
            raise TypeError("there is no float64 here")
        return super().asarray(host, dtype, device)


def test_a_sound_backend_without_float64_passes():
    report = check(Single())
    assert report.passed, report
    assert {"pack_of_mixed_precision", "jvp"} <= set(report.skipped)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_law_that_is_broken_is_the_first_to_fail(name):
    """In CI that law is run alone; with ``FULL`` those before it too, which the fault breaks none of."""
    backend, law = FAULTS[name]
    report = check(backend(), only=None if FULL else (law,), stop=True)
    assert report.failed == (law,), report
