"""torch's process groups: three gloo processes, started once, run the checks of two modules in ``support/``."""

import pytest
from spawned import checks_of, hold, run_checks

pytestmark = pytest.mark.devices

MODULES = "telling_checks", "process_checks"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_checks(tmp_path_factory.mktemp("processes"), " ".join(MODULES), 3)


@pytest.mark.parametrize("name", [name for module in MODULES for name in checks_of(module)])
def test_on_all_processes(found, name):
    hold(found, name)
