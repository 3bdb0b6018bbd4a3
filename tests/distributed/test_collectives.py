"""The same script in a group of gloo on the CPU, and of NCCL with a GPU for each process."""

import pytest
from systems import in_full


@pytest.mark.parametrize(
    "backend",
    [pytest.param("gloo", marks=[pytest.mark.devices, in_full]), pytest.param("nccl", marks=pytest.mark.gpu)],
)
def test_a_group_does_what_one_process_does(tmp_path, backend):
    torch = pytest.importorskip("torch")
    if not (torch.distributed.is_available() and torch.distributed.is_backend_available(backend)):
        pytest.skip(f"this torch has no {backend}")
    size = 2 if backend == "gloo" else torch.cuda.device_count()
    if not size:
        pytest.skip("torch sees no CUDA device")
    import collective_checks

    torch.multiprocessing.start_processes(
        collective_checks.run, (size, str(tmp_path), backend), size, start_method="spawn"
    )
    assert all((tmp_path / f"passed{rank}").exists() for rank in range(size))
