"""Rules for stopping: each against its definition, on every backend, alone, in columns and in compiled programs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import FULL, N, benign, counted, finished, gaussian, host, operator, rounded, spare, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.solvers.stopping import Progress
from linop_gn.testing.strategies import array, dtypes, scales, seeds

IN_CI_ON_JAX = (
    "test_a_tolerance_out_of_reach_is_no_success",
    "test_relative_progress_on_every_backend",
    "test_any_of_several_is_the_first_that_is_met",
    "test_a_rule_of_ones_own",
)


def outcome(solution):
    return solution.status, int(solution.steps), int(solution.products)


# tolerances on the residual


@given(data=st.data(), seed=seeds(), exponent=st.floats(-6, -1))
def test_the_rule_of_the_tolerance_is_the_tolerance(backend, data, seed, exponent):
    spare(backend, FULL)
    dtype = data.draw(dtypes(backend))
    matrix, b, rtol = benign(seed), gaussian(seed), 10.0**exponent
    A, B = operator(backend, matrix, dtype), array(backend, b, dtype)
    for atol in (0.0, 1e-3):
        plain = lg.solve(A, B, lg.CG(rtol=rtol, atol=atol))
        ruled = lg.solve(A, B, lg.CG(stop=lg.RelativeResidual(rtol, atol)))
        assert outcome(plain) == outcome(ruled)
        np.testing.assert_array_equal(host(backend, plain.x), host(backend, ruled.x))


@given(data=st.data(), seed=seeds(), of_rhs=scales(), warm=st.booleans())
def test_the_largest_entry_of_the_residual(backend, data, seed, of_rhs, warm):
    dtype = data.draw(dtypes(backend))
    matrix, b = rounded(benign(seed), dtype), rounded(of_rhs * gaussian(seed), dtype)
    atol = 1e-4 * of_rhs
    A, counter = counted(backend, matrix, dtype)
    start = array(backend, of_rhs * gaussian(seed + 1), dtype) if warm else None
    solution = lg.solve(A, array(backend, b, dtype), lg.CG(stop=lg.MaxResidual(atol)), x0=start)
    finished(backend)
    assert solution.status is Status.CONVERGED
    assert counter.calls == int(solution.products) == int(solution.steps) + 1 + warm
    residual = b - matrix @ host(backend, solution.x)
    slack = 1e-5 * of_rhs if dtype == "float32" else 0.0
    assert np.abs(residual).max() <= atol * (1 + 1e-6) + slack
    assert solution.history["residual"][-1] <= atol * np.sqrt(N) + slack
    assert solution.history["residual"][-2] > atol - slack, "met at the last step, and not before"


@pytest.mark.parametrize("rule", [lg.RelativeResidual(1e-30), lg.MaxResidual(1e-30)])
def test_a_tolerance_out_of_reach_is_no_success(backend, rule):
    solution = lg.solve(operator(backend, benign(1)), array(backend, gaussian(1)), lg.CG(stop=rule))
    assert solution.status is Status.STAGNATED
    assert float(solution.residual) < 1e-13


# relative progress


def martens(matrix, b, eps, steps, x0=None, least=10, every=10):
    """Where textbook CG levels off, by the definition; phi computed from the iterates themselves."""
    x = np.zeros(len(b)) if x0 is None else x0.copy()
    r = b - matrix @ x
    p, phi = r.copy(), [0.5 * x @ matrix @ x - b @ x]
    for i in range(1, steps + 1):
        q = matrix @ p
        alpha = (r @ r) / (p @ q)
        x = x + alpha * p
        new = r - alpha * q
        p = new + (new @ new) / (r @ r) * p
        r = new
        phi.append(0.5 * x @ matrix @ x - b @ x)
        k = max(least, int(np.ceil(i / every)))
        if i > k and phi[i] < 0 and (phi[i] - phi[i - k]) / phi[i] < k * eps:
            return i, phi[i]
    return None, phi[-1]


LARGE = 60


def levels_off(phi, eps, least, every):
    """The first step at which the rule holds on these values."""
    for i, now in enumerate(phi):
        k = max(least, int(np.ceil(i / every)))
        if i > k and now < 0 and (now - phi[i - k]) / now < k * eps:
            return i
    return None


def progress_is_martens_rule(backend, seed, warm, of_rhs, eps=5e-4, least=10, every=10):
    rng = np.random.default_rng(seed)
    matrix = with_spectrum(10.0 ** rng.uniform(-1.5, 1, LARGE), seed)
    b = of_rhs * rng.standard_normal(LARGE)
    x0 = 0.1 * np.linalg.solve(matrix, b) if warm else None
    step, phi = martens(matrix, b, eps, 2 * LARGE, x0, least, every)
    method = lg.CG(stop=lg.RelativeProgress(eps, least, every), max_steps=2 * LARGE)
    A, counter = counted(backend, matrix)
    start = None if x0 is None else array(backend, x0)
    solution = lg.solve(A, array(backend, b), method, x0=start)
    finished(backend)
    steps = int(solution.steps)
    assert counter.calls == int(solution.products) == steps + warm, "the model's values take no product"
    assert solution.status is Status.LEVELLED_OFF
    assert solution.succeeded
    assert steps == levels_off(solution.history["model"], eps, least, every)
    # Rounding delays conjugate gradients, by more the longer the run; from there on the model falls by less than k eps.
    delay = 1 + step // 8
    assert abs(steps - step) <= delay
    assert float(solution.model) == pytest.approx(phi, rel=(delay + max(least, -(-steps // every))) * eps)
    ours = host(backend, solution.x)
    assert float(solution.model) == pytest.approx(0.5 * ours @ matrix @ ours - b @ ours, rel=1e-9)


@pytest.mark.parametrize(("eps", "least", "every"), [(5e-4, 10, 10), (5e-3, 3, 4), (1e-5, 1, 2)])
@given(seed=seeds(), warm=st.booleans(), of_rhs=scales())
def test_relative_progress_is_martens_rule(numpy_backend, eps, least, every, seed, warm, of_rhs):
    progress_is_martens_rule(numpy_backend, seed, warm, of_rhs, eps, least, every)


@pytest.mark.parametrize("warm", [False, True])
def test_relative_progress_on_every_backend(backend, warm):
    for seed, of_rhs in ((0, 1.0), (1, 1e-6), (2, 1e6)):
        progress_is_martens_rule(backend, seed, warm, of_rhs)


def test_relative_progress_in_columns_is_each_alone(backend):
    spare(backend, FULL)
    rng = np.random.default_rng(0)
    matrix = with_spectrum(10.0 ** rng.uniform(-1.5, 1, LARGE), 0)
    b = rng.standard_normal((LARGE, 3)) * [1.0, 1e-9, 1e9]
    b[:, 2] = np.linalg.eigh(matrix)[1][:, :2] @ [1.0, 2.0]  # done before there is any progress to look back on
    rule = lg.AnyOf(lg.RelativeProgress(least=4), lg.RelativeResidual(1e-9))
    method = lg.CG(stop=rule, max_steps=150)
    together = lg.solve(operator(backend, matrix), array(backend, b), method)
    assert together.status == [Status.LEVELLED_OFF, Status.LEVELLED_OFF, Status.CONVERGED]
    for j in range(3):
        alone = lg.solve(operator(backend, matrix), array(backend, b[:, j]), method)
        assert alone.status is together.status[j]
        assert abs(int(alone.steps) - int(together.steps[j])) <= 1, "products of columns round otherwise"
        assert int(together.products[j]) == int(together.steps[j]) + (alone.status is Status.CONVERGED)


def test_the_window_grows_with_the_steps(numpy_backend):
    rule = lg.RelativeProgress()
    assert [rule.window(numpy_backend, i) for i in (1, 10, 100, 101, 110, 111, 1000)] == [10, 10, 10, 11, 11, 12, 100]
    assert [len(rule.begin(numpy_backend, Progress(0, 1.0, 0.0, None, 1.0), n)) for n in (5, 101)] == [11, 12]


def test_a_long_run_looks_back_as_far_as_it_must(numpy_backend):
    """The ring of past values goes round many times."""
    d = 10.0 ** np.random.default_rng(0).uniform(-5, 0, 3000)
    method = lg.CG(stop=lg.RelativeProgress(1e-5), max_steps=2000)
    solution = lg.solve(lg.Diagonal(d), np.sqrt(d), method)
    assert solution.status is Status.LEVELLED_OFF
    assert int(solution.steps) == levels_off(solution.history["model"], 1e-5, 10, 10)
    assert int(solution.steps) > 300


def test_a_million_unknowns_level_off_as_they_do_in_double_precision(backend):
    spare(backend, FULL)
    if backend.name in ("array_api_strict", "poison"):
        pytest.skip("the same arithmetic as NumPy's, slower")
    d, b = np.linspace(1.0, 300.0, 1_000_000), np.random.default_rng(0).standard_normal(1_000_000)
    found = []
    for dtype in ("float64", "float32"):
        A = lg.Diagonal(array(backend, d, dtype), psd=True)
        solution = lg.solve(A, array(backend, b, dtype), lg.CG(stop=lg.RelativeProgress(), max_steps=100))
        assert solution.status is Status.LEVELLED_OFF
        found.append((int(solution.steps), float(solution.model)))
    assert abs(found[0][0] - found[1][0]) <= 1
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


# several rules, and rules of one's own


def test_any_of_several_is_the_first_that_is_met(backend):
    rng = np.random.default_rng(1)
    matrix = with_spectrum(10.0 ** rng.uniform(-1.5, 1, LARGE), 1)
    A, b = operator(backend, matrix), array(backend, rng.standard_normal(LARGE))
    tight, progress = lg.RelativeResidual(1e-10), lg.RelativeProgress()
    flat = lg.solve(A, b, lg.CG(stop=progress, max_steps=200))
    both = lg.solve(A, b, lg.CG(stop=lg.AnyOf(tight, progress), max_steps=200))
    assert outcome(both) == outcome(flat)
    loose = lg.solve(A, b, lg.CG(stop=lg.AnyOf(progress, lg.RelativeResidual(0.5)), max_steps=200))
    assert loose.status is Status.CONVERGED
    assert int(loose.steps) < int(flat.steps)


@lg.record
class Enough:
    """Stops when the model is at ``share`` of its least value, which somebody told."""

    least: float
    share: float = 0.9

    def begin(self, ops, start, limit):
        return ops.divide(self.share * self.least, start.scale * start.scale), start.step

    def look(self, ops, memory, now):
        bound, asked = memory
        return ops.where(now.model <= bound, int(Status.SATISFIED), int(Status.RUNNING)), (bound, asked + 1)


@pytest.mark.parametrize("columns", [None, 2])
def test_a_rule_of_ones_own(backend, columns):
    matrix = with_spectrum(np.linspace(0.1, 10, N), 0)
    b = 1e-3 * (gaussian(0) if columns is None else gaussian(0, N, columns))
    least = -0.5 * np.sum(b * np.linalg.solve(matrix, b), axis=0)
    rule = Enough(float(np.max(least)))
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.CG(stop=rule))
    statuses = [solution.status] if columns is None else solution.status
    assert statuses == [Status.SATISFIED] * (columns or 1)
    assert solution.succeeded
    model = solution.history["model"]
    for j in range(columns or 1):
        column = model if columns is None else model[:, j]
        last = int(np.max(np.asarray(solution.steps).reshape(-1)[j]))
        assert column[last] <= 0.9 * np.max(least) < column[last - 1]


@lg.record
class Says:
    """A rule that says this once a step was taken."""

    said: object = lg.static()

    def begin(self, ops, start, limit):
        return start.step

    def look(self, ops, memory, now):
        return (int(Status.RUNNING), memory) if isinstance(now.step, int) and now.step == 0 else self.said


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (None, r"\(code, memory\), got None"),
        (1, r"\(code, memory\), got 1"),
        (("done", 0), r"a code of lg.Status, got 'done'"),
        ((99, 0), "a code of lg.Status, got 99"),
        ((np.float64(1.0), 0), "a code of lg.Status, got float64"),
    ],
    ids=str,
)
@pytest.mark.parametrize("within", [False, True])
def test_what_a_rule_returns_is_looked_at_at_every_step(backend, said, words, within):
    rule, b = Says(said=said), array(backend, gaussian(0))
    spare(backend, said is None)
    rule = lg.AnyOf(lg.RelativeResidual(1e-12), rule) if within else rule
    for start in (None, b):
        with pytest.raises(TypeError, match=f"Says.look must return {words}"):
            lg.solve(operator(backend, benign(0)), b, lg.CG(stop=rule), x0=start)


def test_a_rule_of_ones_own_compiles_once_for_all_numbers(jax):
    ops = lg.load("jax")
    A, b = operator(ops, benign(0)), array(ops, gaussian(0))
    rules = (lg.RelativeProgress, lambda v: lg.AnyOf(lg.MaxResidual(v), Enough(-v)))
    for make in rules:
        lg.solve(A, b, lg.CG(stop=make(0.1), max_steps=9))
        before = ops.compilations()
        for value in (0.2, 0.3):
            lg.solve(A, b, lg.CG(stop=make(value), max_steps=9))
        assert ops.compilations() == before


def test_a_rule_that_is_met_at_the_start_takes_no_product(backend):
    A, counter = counted(backend, benign(0))
    b = array(backend, gaussian(0))
    assert outcome(lg.solve(A, b, lg.CG(stop=Enough(0.0)))) == (Status.SATISFIED, 0, 0)
    assert outcome(lg.solve(A, b, lg.CG(stop=lg.MaxResidual(10.0)))) == (Status.CONVERGED, 0, 0)
    finished(backend)
    assert counter.calls == 0


def test_a_zero_right_hand_side_is_solved_whatever_the_rule(backend):
    A, b = operator(backend, benign(0)), array(backend, np.zeros(N))
    for rule, start in ((lg.RelativeProgress(), None), (Enough(-1.0), array(backend, np.ones(N)))):
        solution = lg.solve(A, b, lg.CG(stop=rule, max_steps=9), x0=start)
        assert outcome(solution) == (Status.CONVERGED, 0, 0)
        assert not host(backend, solution.x).any()


def test_the_limit_holds_beside_any_rule(backend):
    A, b = operator(backend, benign(0)), array(backend, gaussian(0))
    solution = lg.solve(A, b, lg.CG(stop=lg.RelativeProgress(), max_steps=3))
    assert outcome(solution) == (Status.MAX_STEPS, 3, 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lg.CG(stop=lg.MaxResidual(), rtol=1e-3), ValueError, "takes the place of rtol"),
        (lambda: lg.CG(stop=lg.MaxResidual(), steps=3), ValueError, "takes the place of rtol"),
        (lambda: lg.CG(stop=1e-3), TypeError, "a stopping rule is a float"),
        (lambda: lg.CG(stop=lg.MaxResidual), TypeError, "the class MaxResidual"),
        (lambda: lg.AnyOf(), ValueError, "at least one rule"),
        (lambda: lg.AnyOf(lg.MaxResidual(), 3), TypeError, "a stopping rule is a int"),
        (lambda: lg.MaxResidual(-1.0), ValueError, "atol must be a finite number"),
        (lambda: lg.RelativeProgress(float("nan")), ValueError, "eps must be a finite number"),
        (lambda: lg.RelativeProgress(least=0), ValueError, "least must be a whole number"),
        (lambda: lg.RelativeResidual(rtol=float("inf")), ValueError, "rtol must be a finite number"),
    ],
)
def test_rules_that_make_no_sense_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# forcing terms


def by_the_paper(choice, eta, norm, before, residual, most=0.9, gamma=0.9, alpha=2.0, threshold=0.1):
    """Eisenstat and Walker's two choices with their safeguards, written out."""
    if choice == 1:
        wanted, safe = abs(norm - residual) / before, eta ** ((1 + np.sqrt(5)) / 2)
    else:
        wanted, safe = gamma * (norm / before) ** alpha, gamma * eta**alpha
    return min(max(wanted, safe) if safe > threshold else wanted, most)


@pytest.mark.parametrize("choice", [1, 2])
@given(seed=seeds(), unit=scales(-12, 12))
def test_forcing_terms_are_the_papers(backend, choice, seed, unit):
    rng = np.random.default_rng(seed)
    before, eta = unit, float(rng.uniform(0, 0.9))
    norm, residual = unit * 10.0 ** rng.uniform(-4, 0.3), unit * eta
    b = array(backend, np.ones(1))
    given_ = [backend.scalar(v, b) for v in (eta, norm, before, residual)]
    found = lg.EisenstatWalker(choice).update(backend, *given_)
    assert float(found) == pytest.approx(by_the_paper(choice, eta, norm, before, residual), rel=1e-12)


def test_forcing_terms_stay_within_bounds_whatever_they_are_told(backend):
    b = array(backend, np.ones(1))

    def update(forcing, *values):
        return float(forcing.update(backend, *(backend.scalar(v, b) for v in values)))

    for choice in (1, 2):
        forcing = lg.EisenstatWalker(choice)
        for norm, before in ((np.nan, 1.0), (np.inf, 1.0), (1e300, 1e-300), (1.0, np.nan)):
            assert update(forcing, 0.5, norm, before, 1.0) == 0.9
        assert update(forcing, 0.1, 0.0, 1.0, 0.0) == 0.0
    assert update(lg.EisenstatWalker(target=1e-3), 0.01, 2e-3, 1.0) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="residual norm of the last system"):
        update(lg.EisenstatWalker(1), 0.1, 1.0, 1.0)
    for options in ({"choice": 3}, {"most": 1.0}, {"alpha": 3.0}, {"gamma": -0.1}):
        with pytest.raises(ValueError, match="EisenstatWalker"):
            lg.EisenstatWalker(**options)


@pytest.mark.parametrize("choice", [1, 2])
def test_inexact_newton_with_forcing_terms_converges_superlinearly(numpy_backend, choice):
    """A convex function of 50 unknowns; the linear solves get more accurate only as that pays."""
    rng = np.random.default_rng(0)
    matrix, c = with_spectrum(10.0 ** rng.uniform(-1, 2, 50), 0), rng.standard_normal(50)

    def gradient(x):
        return matrix @ x + x**3 - c

    forcing, x = lg.EisenstatWalker(choice), np.zeros(50)
    eta, g, norms, products = forcing.first, gradient(np.zeros(50)), [], 0
    for _ in range(30):
        norms.append(np.linalg.norm(g))
        if norms[-1] <= 1e-10 * norms[0]:
            break
        A = lg.Dense(matrix + np.diag(3 * x**2), symmetric=True)
        step = lg.solve(A, -g, lg.CG(rtol=eta, max_steps=500))
        products += int(step.products)
        x, g = x + step.x, gradient(x + step.x)
        eta = forcing.update(numpy_backend, eta, np.linalg.norm(g), norms[-1], float(step.residual))
    assert norms[-1] <= 1e-10 * norms[0]
    assert norms[-1] / norms[-2] < 1e-3 < norms[1] / norms[0]
    assert products < 400


@pytest.mark.parametrize(
    "method",
    [
        lg.CG(max_steps=10**10),
        lg.CG(stop=lg.RelativeProgress(), max_steps=10**9),
        lg.MINRES(max_steps=10**9),
        lg.MultiShiftCG([0.1, 1.0], max_steps=10**9),
        lg.Lanczos(10**9, reorthogonalise="none"),
        lg.GLTR(radius=1.0, max_steps=10**9, reorthogonalise="none"),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_limit_that_means_none_takes_no_room(backend, method):
    spare(backend, isinstance(method, (lg.MINRES, lg.Lanczos)))
    A = lg.Diagonal(array(backend, np.arange(1.0, 7.0)))
    assert lg.solve(A, array(backend, np.ones(6)), method).succeeded


def test_iterates_are_not_planned_without_end():
    for keep in ("every", 1.3, (1, 2)):
        with pytest.raises(ValueError, match="max_steps= or steps= of at most 1000000"):
            lg.CG(max_steps=10**9, keep=keep)
    assert len(lg.solve(lg.Diagonal(np.ones(2)), np.ones(2), lg.CG(max_steps=10**6, keep="every")).iterates) == 2
