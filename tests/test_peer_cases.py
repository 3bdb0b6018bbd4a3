"""What docs/peers.md says of our solvers on systems that solvers fail on is what they do, on every backend."""

import re
from pathlib import Path

import numpy as np
import pytest
from peer_cases import error, lowest, right, solve
from peer_systems import cases

PAGE = Path(__file__).parent.parent / "docs" / "peers.md"
FAMILIES = {
    "definite": "Conjugate gradients",
    "symmetric": "Indefinite and singular systems",
    "rectangular": "Least squares",
    "spectrum": "Lanczos processes",
    "region": "Trust regions",
}
ALL = [pytest.param(case, name, id=f"{name}: {case.name}") for case in cases() for name in case.ours]
COMPILED = {"many unknowns in float32", "overflow in a product", "NaN in b", "tiny right-hand side"}


@pytest.mark.parametrize(("case", "name"), ALL)
def test_statuses(backend, case, name):
    if "compiled" in backend.capabilities and case.name not in COMPILED:
        pytest.skip("every shape and product is compiled anew: a few of the systems will do")
    if case.dtype not in backend.capabilities and case.dtype == "float64":
        pytest.skip("no float64 here")
    found = solve(case, name, backend)
    assert found.status is case.ours[name] or (case.rounding and not found.status.succeeded)
    assert np.isfinite(found.x).all(), "whatever happened, numbers come back"
    if found.status.succeeded and case.truth not in ("nothing", "step"):
        assert right(case, found.x, slack=10.0 if case.family == "rectangular" else 1.01)


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not here")
def test_the_page_says_the_same():
    text = PAGE.read_text()
    for case in cases():
        part = text.partition(f"### {FAMILIES[case.family]}: {case.name}\n")[2].partition("\n###")[0]
        assert case.what in part
        for name, status in case.ours.items():
            said = re.search(rf"^\| linop_gn {re.escape(name)} \|.*\| (\w+): ", part, re.MULTILINE)
            assert said is not None, f"{name} is missing for {case.name}"
            assert said[1] == status.name


def test_answers_are_judged():
    for case in cases():
        if case.truth == "solution" and case.data[0].ndim == 2 and case.b.any() and "singular" not in case.name:
            x = np.linalg.lstsq(case.data[0].astype(float), case.b.astype(float) / np.abs(case.b).max())[0]
            x = x * np.abs(case.b).max()
            assert right(case, x, slack=1.0), case.name
            assert not right(case, 1.1 * x), case.name
            assert not right(case, np.full(len(x), np.nan)), case.name


def test_the_lowest_model_value():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        matrix, b, radius = np.diag([-1.0, 2.0]), rng.standard_normal(2), rng.uniform(0.1, 3)
        angles = np.linspace(0, 2 * np.pi, 200_001)
        points = radius * np.stack([np.cos(angles), np.sin(angles)])
        best = (0.5 * np.sum(points * (matrix @ points), axis=0) - b @ points).min()
        assert lowest(matrix, b, radius) == pytest.approx(best, abs=1e-6)
    assert lowest(np.diag([-1.0, 2.0]), np.zeros(2), 3.0) == pytest.approx(-4.5)
    assert lowest(np.diag([1.0, 2.0]), np.array([1.0, 0.0]), 3.0) == pytest.approx(-0.5)


def test_eigenvalues_count_once():
    case = next(case for case in cases() if case.name == "whole spectrum")
    values = case.data[0]
    assert error(case, values[:5]) == 0.0
    assert error(case, np.repeat(values[-1:], 2)) > 0.1
