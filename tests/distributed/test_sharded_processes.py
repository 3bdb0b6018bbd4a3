"""Two processes of JAX on one host, started by ``nox -s devices_full``."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from systems import in_full

pytestmark = pytest.mark.devices
SUPPORT = Path(__file__).parents[1] / "support"


@in_full
def test_two_processes_with_two_devices_each_find_what_one_device_does():
    pytest.importorskip("jax")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags += " --xla_force_host_platform_device_count=2"
    path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path}
    program = [sys.executable, str(SUPPORT / "jax_process.py")]
    started = [
        subprocess.Popen([*program, str(rank), str(port)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=240)[0].decode(errors="replace") for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)[-4000:]
