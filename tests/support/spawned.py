"""Checks that several gloo processes run, started once for a file of tests: those of a module in this folder."""

import ast
import pickle
from pathlib import Path

import pytest


def checks_of(module):
    """The names of the checks in a module, without torch, which it imports."""
    source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    functions = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return [name.removeprefix("check_") for name in functions if name.startswith("check_")]


def run_checks(folder, modules, size, names=None, seconds=180):
    """What each of ``size`` processes told of the checks of modules, or of those with these names."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    import process_checks

    started = torch.multiprocessing.start_processes(
        process_checks.run, (size, str(folder), modules, names), size, join=False, start_method="spawn"
    )
    late = {}
    for rank, process in enumerate(started.processes):
        process.join(seconds)
        if process.is_alive():
            process.kill()
            late[rank] = {"late": f"it had not come to this check after {seconds} seconds"}
    return [late.get(rank, {}) | pickle.loads((folder / f"found{rank}").read_bytes()) for rank in range(size)]


def hold(found, name):
    """Fail with what the processes told of a check, unless all of them passed it."""
    told = [of.get(name, of.get("late", "it never came to this check")) for of in found]
    told = [f"process {rank}: {text}" for rank, text in enumerate(told)]
    assert told == [f"process {rank}: " for rank in range(len(found))], "\n".join(told)
