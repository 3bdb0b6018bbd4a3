"""torch's process groups: three gloo processes, started once, run all the checks of ``support/process_checks.py``."""

import pytest
from spawned import checks_of, hold, run_checks

pytestmark = pytest.mark.devices


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_checks(tmp_path_factory.mktemp("processes"), "process_checks", 3)


@pytest.mark.parametrize("name", checks_of("process_checks"))
def test_on_all_processes(found, name):
    hold(found, name)
