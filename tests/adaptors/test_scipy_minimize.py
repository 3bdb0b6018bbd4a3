"""Methods inside ``scipy.optimize.minimize``, objectives for its own, operators in SciPy's solvers."""

import numpy as np
import pytest
import scipy.sparse as sparse
import scipy.sparse.linalg as splinalg
from scipy.optimize import Bounds, OptimizeWarning, minimize, rosen, rosen_der, rosen_hess, rosen_hess_prod

import linop_gn as lg

START = np.array([-1.2, 1.0, 0.9])
METHODS = {"TrustRegion": lg.TrustRegion(), "NewtonCG": lg.NewtonCG()}
WAYS = {
    "hessp": {"jac": rosen_der, "hessp": rosen_hess_prod},
    "hess": {"jac": rosen_der, "hess": rosen_hess},
    "sparse": {"jac": rosen_der, "hess": lambda x: sparse.csr_array(rosen_hess(x))},
    "operator": {"jac": rosen_der, "hess": lambda x: splinalg.aslinearoperator(rosen_hess(x))},
    "jac": {"jac": rosen_der},
    "fun": {},
}


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", METHODS)
def test_it_finds_what_scipy_finds_and_counts_what_was_called(name, way):
    fun, ways = Counted(rosen), {what: Counted(function) for what, function in WAYS[way].items()}
    found = minimize(fun, START, method=lg.scipy_method(METHODS[name]), **ways)
    theirs = minimize(rosen, START, method="trust-exact", jac=rosen_der, hess=rosen_hess, options={"gtol": 1e-9})
    assert found.success
    assert found.status == 0
    np.testing.assert_allclose(found.x, theirs.x, atol=1e-4 if way == "fun" else 1e-7)
    assert found.x.dtype == found.jac.dtype == np.float64
    np.testing.assert_allclose(found.jac, rosen_der(found.x), atol=1e-6)
    assert found.fun == rosen(found.x)
    assert found.nfev == fun.calls
    assert found.njev == (ways["jac"].calls if "jac" in ways else 0)
    assert found.nhev == sum(ways[what].calls for what in ways if what != "jac")
    assert found.nit == found.result.steps
    if name == "TrustRegion" and "jac" in ways:
        assert fun.calls <= found.nit + 2
    assert ("differences" in found.message) == (way in ("jac", "fun"))


def test_args_jac_true_and_starts_of_other_dtypes():
    def both(x, a, b):
        return np.sum((x - a) ** 2) + b, 2 * (x - a)

    for x0 in ([5, 6], np.float32(3.0)):
        found = minimize(both, x0, args=(2.0, 1.5), jac=True, method=lg.scipy_method())
        np.testing.assert_allclose(found.x, 2.0)
        assert found.fun == 1.5
        assert found.x.dtype == np.float64


def test_tolerances_and_limits():
    plain = {"jac": rosen_der, "hess": rosen_hess, "method": lg.scipy_method()}
    for loose in (
        minimize(rosen, START, tol=1e-2, **plain),
        minimize(rosen, START, options={"gtol": 1e-2}, **plain),
    ):
        assert loose.success
        assert 1e-12 < np.linalg.norm(loose.jac) <= 1e-2
    short = minimize(rosen, START, options={"maxiter": 2}, **plain)
    assert (short.success, short.status, short.nit) == (False, 1, 2)
    lost = minimize(lambda x: np.nan, START, jac=rosen_der, method=lg.scipy_method())
    assert (lost.success, lost.status) == (False, 3)


def test_callbacks_of_both_styles_see_each_step_and_may_stop():
    seen, told = [], []

    def old(xk):
        seen.append(xk)

    def new(intermediate_result):
        told.append((intermediate_result.x, intermediate_result.fun))
        if len(told) == 3:
            raise StopIteration

    plain = {"jac": rosen_der, "hess": rosen_hess, "method": lg.scipy_method()}
    whole = minimize(rosen, START, callback=old, **plain)
    assert len(seen) == whole.nit
    np.testing.assert_array_equal(seen[-1], whole.x)
    stopped = minimize(rosen, START, callback=new, **plain)
    assert (stopped.success, stopped.status, stopped.nit) == (False, 99, 3)
    for x, value in told:
        assert value == rosen(x)


def test_display_and_unknown_options(capsys):
    plain = {"jac": rosen_der, "hess": rosen_hess, "method": lg.scipy_method()}
    with pytest.warns(OptimizeWarning, match="Unknown solver options: colour"):
        minimize(rosen, START, options={"colour": 1, "disp": True}, **plain)
    assert "TrustRegion: fun" in capsys.readouterr().out


def test_what_cannot_be_used_is_refused():
    plain = {"jac": rosen_der, "hess": rosen_hess}
    for bounds in ([(0, 1), (None, 2), (0, None)], Bounds(0, [1, 2, 3])):
        with pytest.raises(ValueError, match="takes no bounds and no constraints"):
            minimize(rosen, START, bounds=bounds, method=lg.scipy_method(), **plain)
    minimize(rosen, START, bounds=Bounds(), method=lg.scipy_method(), **plain)
    with pytest.raises(ValueError, match="takes no bounds and no constraints"):
        minimize(rosen, START, constraints={"type": "eq", "fun": sum}, method=lg.scipy_method(), **plain)
    with pytest.raises(TypeError, match="Solvers of linear systems are none"):
        lg.scipy_method(lg.CG())
    with pytest.raises(TypeError, match="has no test of the gradient's norm"):
        minimize(rosen, START, tol=1e-3, method=lg.scipy_method(lg.FirstOrder()), **plain)
    with pytest.raises(ValueError, match="fun must return one number"):
        minimize(rosen_der, START, method=lg.scipy_method(), **plain)
    with pytest.raises(ValueError, match="jac returned 2 numbers for 3"):
        minimize(rosen, START, jac=lambda x: x[:2], method=lg.scipy_method())
    with pytest.raises(ValueError, match=r"works for scalar functions, and lg\.TrustRegion\(\) minimises them"):
        minimize(rosen, START, method=lg.scipy_method(lg.LevenbergMarquardt()), **plain)


@pytest.mark.parametrize("curvature", [lg.GGN, lg.Hessian])
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_objectives_of_all_frameworks_in_scipys_own(backend, curvature):
    xp = pytest.importorskip({"jax": "jax.numpy"}.get(backend, backend))
    data = np.array([1.0, 2.0, 3.0])

    def residuals(p):
        return xp.exp(p["a"]) * p["b"] - xp.asarray(data)

    derivatives = {}
    if backend == "numpy":
        if curvature is lg.Hessian:
            pytest.importorskip("autograd")
            residuals = _with_autograd(data)
            derivatives = {"derivatives": "autograd"}
        else:
            derivatives = {"jacobian": lambda p: {"a": np.diag(np.exp(p["a"]) * p["b"]), "b": np.diag(np.exp(p["a"]))}}
    params = {"a": xp.asarray(np.zeros(3)), "b": xp.asarray(np.ones(3))}
    problem = lg.scipy_problem(lg.Objective.from_residuals(residuals, **derivatives), params, curvature)
    options = {"jac": problem.jac, "hessp": problem.hessp, "method": "trust-ncg", "options": {"gtol": 1e-9}}
    found = minimize(problem.fun, problem.x0, **options)
    assert found.success
    made = problem.params(found.x)
    assert type(made["a"]) is type(params["a"])
    np.testing.assert_allclose(np.exp(np.asarray(made["a"])) * np.asarray(made["b"]), data, atol=1e-8)


def _with_autograd(data):
    import autograd.numpy as anp

    return lambda p: anp.exp(p["a"]) * p["b"] - data


@pytest.mark.parametrize("wrap", [lambda A: A, lg.to_scipy], ids=["as it is", "to_scipy"])
def test_operators_in_scipys_solvers(wrap):
    rng = np.random.default_rng(0)
    R = rng.standard_normal((12, 8))
    A, J = lg.Dense(R.T @ R + np.eye(8), psd=True), lg.Dense(R)
    G = lg.GGN(lg.Objective.from_residuals(lambda p: R @ p, jacobian=lambda p: R), np.zeros(8)) + 1.0 * lg.Identity(
        A.domain
    )
    values = np.linalg.eigvalsh(R.T @ R + np.eye(8))
    for operator in (A, G):
        np.testing.assert_allclose(splinalg.eigsh(wrap(operator), k=2)[0], values[-2:])
        x, code = splinalg.gmres(wrap(operator), np.ones(8), rtol=1e-12)
        assert code == 0
        np.testing.assert_allclose(x, np.linalg.solve(R.T @ R + np.eye(8), np.ones(8)))
    np.testing.assert_allclose(splinalg.svds(wrap(J), k=2)[1], np.linalg.svd(R)[1][1::-1])


def test_operators_in_pylops_and_back():
    pylops = pytest.importorskip("pylops")
    R = np.random.default_rng(0).standard_normal((6, 4))
    theirs = pylops.aslinearoperator(lg.to_scipy(lg.Dense(R)))
    y = np.ones(6)
    np.testing.assert_allclose((theirs.H @ theirs) @ np.ones(4), R.T @ R @ np.ones(4))
    np.testing.assert_allclose(pylops.optimization.basic.lsqr(theirs, y, np.zeros(4))[0], np.linalg.lstsq(R, y)[0])
    back = lg.from_scipy(2.0 * theirs)
    np.testing.assert_allclose(lg.solve(back, y, lg.LSMR(atol=1e-12, btol=1e-12)).x, np.linalg.lstsq(2 * R, y)[0])


@pytest.mark.parametrize(
    ("ways", "kind", "words"),
    [
        ({"fun": lambda x: None}, TypeError, "fun returned None"),
        ({"jac": lambda x: rosen_der(x)[:2]}, ValueError, "jac returned 2 numbers for 3"),
        ({"hessp": lambda x, v: v[:2]}, ValueError, "hessp returned 2 numbers for 3"),
        ({"hess": lambda x: rosen_hess(x)[:2]}, ValueError, r"hess returned shape \(2, 3\) for 3"),
        ({"hess": lambda x: sparse.csr_array(rosen_hess(x)[:2])}, ValueError, r"hess returned shape \(2, 3\)"),
    ],
)
def test_what_functions_return_is_named_where_it_does_not_fit(ways, kind, words):
    with pytest.raises(kind, match=words):
        minimize(**{"fun": rosen, "x0": START, "jac": rosen_der, "method": lg.scipy_method()} | ways)


def test_a_hessian_of_lists_is_taken_and_the_limit_has_scipys_name():
    found = minimize(
        rosen,
        START,
        jac=rosen_der,
        hess=lambda x: rosen_hess(x).tolist(),
        method=lg.scipy_method(),
        options={"maxiter": 2},
    )
    assert not found.success
    assert found.nit == 2
    assert "maxiter" in found.message


def test_a_method_itself_is_one_of_scipys():
    found = minimize(rosen, START, jac=rosen_der, hess=rosen_hess, method=lg.NewtonCG(), options={"maxiter": 90})
    same = minimize(rosen, START, jac=rosen_der, hess=rosen_hess, method=lg.scipy_method(lg.NewtonCG()))
    assert found.success
    assert (found.nit, found.nfev) == (same.nit, same.nfev)
    with pytest.raises(ValueError, match="no bounds"):
        minimize(rosen, START, method=lg.TrustRegion(), bounds=[(0, 1)] * 3)
