"""Parameters that are DTensors: four gloo processes run all the checks of ``support/dtensor_checks.py``."""

import ast
import pickle
from pathlib import Path

import pytest
from systems import FULL, in_full

pytestmark = pytest.mark.devices

SIZE = 4
SOURCE = Path(__file__).parents[1] / "support" / "dtensor_checks.py"
NAMES = [
    node.name.removeprefix("check_")
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
FEW = {"products", "solvers", "collectives_are_counted", "what_is_refused"}
"""What is checked where time is short."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    import process_checks

    folder = tmp_path_factory.mktemp("processes")
    started = torch.multiprocessing.start_processes(
        process_checks.run,
        (SIZE, str(folder), "dtensor_checks", None if FULL else sorted(FEW)),
        SIZE,
        join=False,
        start_method="spawn",
    )
    for process in started.processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    return [pickle.loads((folder / f"found{rank}").read_bytes()) for rank in range(SIZE)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else in_full) for name in NAMES])
def test_on_all_processes(found, name):
    told = [f"process {rank}: {of.get(name, 'it never came to this check')}" for rank, of in enumerate(found)]
    assert told == [f"process {rank}: " for rank in range(SIZE)], "\n".join(told)
