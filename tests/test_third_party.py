"""A backend in a distribution of its own: built, installed, found beside ours, held to the same laws."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "linop-gn-slate"

ALONE = "import sys; sys.modules.update(torch=None, jax=None)"  # not what is looked at, and slow to import

pytestmark = [
    pytest.mark.skipif(not EXAMPLE.exists(), reason="runs where the examples are"),
    pytest.mark.skipif(find_spec("hatchling") is None, reason="needs hatchling to build a distribution"),
]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Run Python where the example is installed, from its wheel and nothing else."""
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target), str(EXAMPLE)]
    done = subprocess.run([*install, *offline], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"slate", "linop_gn_slate"} <= {path.name for path in target.iterdir()}
    paths = os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*arguments, cwd=target):
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, env=env, cwd=cwd
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_it_is_found_beside_ours(python):
    found = json.loads(
        python(
            "-c",
            ALONE
            + """
import json, numpy as np, linop_gn as lg
early = "slate" in sys.modules
numpy = lg.backend_of(np.ones(2)).name
still = "slate" in sys.modules
import slate
x = slate.asarray([1.0, 2.0])
try: lg.backend_of(x, np.ones(2)); mixed = ""
except TypeError as error: mixed = str(error)
print(json.dumps({
    "early": early, "numpy": numpy, "still": still, "slate": lg.backend_of({"a": [x]}).name,
    "same": lg.load("slate") is lg.backend_of(x), "mixed": mixed,
    "namespace": lg.namespace(x) is slate, "available": sorted(lg.available()),
}))
""",
        )
    )
    assert not found["early"]
    assert found["numpy"] == "numpy"
    assert not found["still"], "looking up another backend imports it"
    assert found["slate"] == "slate"
    assert found["same"]
    assert found["namespace"]
    assert "arrays of several frameworks are mixed" in found["mixed"]
    assert {"numpy", "slate"} <= set(found["available"])


def test_doctor_tells_of_it(python):
    command = "\nfrom linop_gn.app.cli import main\nmain(['doctor', '{}'])"
    report = json.loads(python("-c", ALONE + command.format("--json")))
    (slate,) = (found for found in report["backends"] if found["name"] == "slate")
    assert "derivatives" in slate["capabilities"]
    assert "functions" in slate["unsupported"]
    table = python("-c", ALONE + command.format("--markdown"))
    assert "| slate |" in table.splitlines()[0]
    assert "reverse over reverse" in table


def test_a_fit_with_its_arrays_is_the_one_with_numpys(python):
    fits = json.loads(
        python(
            "-c",
            """
import json, numpy as np, slate, linop_gn as lg
rng = np.random.default_rng(0)
t = rng.uniform(0, 2, 30)
y = 2.0 * np.exp(-1.5 * t) + 0.01 * rng.standard_normal(30)
def model(p, t):
    return p["a"] * lg.namespace(t).exp(-p["b"] * t)
def jacobian(p, t):
    e = np.exp(-p["b"] * t)
    return {"a": e[:, None], "b": (-p["a"] * t * e)[:, None]}
found = {}
for name, array, more in (("slate", slate.asarray, {}), ("numpy", np.asarray, {"jacobian": jacobian})):
    objective = lg.Objective(model, lg.losses.SquaredError(), (array(t), array(y)), **more)
    fit = lg.minimize(objective, {"a": array([1.0]), "b": array([1.0])}, max_steps=30)
    found[name] = {"status": fit.status.name, "steps": int(fit.steps), "b": float(fit.params["b"][0]),
                   "kind": type(fit.params["b"]).__module__}
print(json.dumps(found))
""",
        )
    )
    assert fits["slate"]["kind"] == "slate.arrays"
    assert fits["slate"]["status"] == fits["numpy"]["status"]
    assert fits["slate"]["steps"] == fits["numpy"]["steps"]
    assert fits["slate"]["b"] == pytest.approx(fits["numpy"]["b"], rel=1e-8)
    assert fits["slate"]["b"] == pytest.approx(1.5, abs=0.1)


def test_it_keeps_every_law(python):
    """The example's own tests, which are the conformance kit."""
    out = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(EXAMPLE), str(EXAMPLE / "tests"))
    assert "passed" in out
    assert "failed" not in out
