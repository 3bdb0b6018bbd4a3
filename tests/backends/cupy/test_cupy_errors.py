"""What is said when there is no CuPy, or nothing for it to run on."""

import subprocess
import sys
from pathlib import Path

import fake_cupy
import numpy as np
import pytest

import linop_gn as lg


@pytest.mark.parametrize("gone", ["no device", "no driver"])
def test_without_a_gpu_the_error_says_what_is_needed(stand_in, monkeypatch, gone):
    ops = lg.load("cupy")

    def count():
        raise fake_cupy.CUDARuntimeError("cudaErrorInsufficientDriver: the driver is too old")

    monkeypatch.setattr(fake_cupy.state, "devices", 0)
    if gone == "no driver":
        monkeypatch.setattr(sys.modules["cupy.cuda.runtime"], "getDeviceCount", count)
    for attempt in (ops.devices, lambda: ops.asarray(np.ones(2), "float64")):
        with pytest.raises(RuntimeError, match=r"finds no GPU to work on \(.*(no CUDA-capable|too old).*nvidia-smi"):
            attempt()


def test_an_error_of_cuda_with_a_gpu_there_is_left_as_it_is(stand_in):
    with pytest.raises(fake_cupy.CUDARuntimeError, match="invalid device ordinal"):
        lg.load("cupy").asarray(np.ones(2), "float64", "cuda:7")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cupy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import linop_gn as lg
"""


def test_without_cupy_the_error_says_how_to_get_it():
    done = run(WITHOUT + "lg.load('cupy')")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: CuPy is not installed.")
    assert "pip install 'linop-gn[cupy12]'" in last
    caught = "\ntry: lg.load('cupy')\nexcept ImportError as error: print(type(error).__name__, error.name)"
    assert run(WITHOUT + caught).stdout.strip() == "ModuleNotFoundError cupy"


def test_another_missing_module_is_not_taken_for_cupy():
    stand_in = Path(fake_cupy.__file__).parent
    done = run(f"import sys; sys.path.insert(0, {str(stand_in)!r})\n" + "import types, sys\n"
               "import fake_cupy; fake_cupy.install(); sys.modules['cupyx'] = None\n"
               "import linop_gn as lg; lg.load('cupy')")  # fmt: skip
    assert "CuPy is not installed" not in done.stderr
    assert "cupyx" in done.stderr.strip().splitlines()[-1]
