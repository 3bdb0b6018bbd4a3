"""Parameters that are DTensors: four gloo processes run the checks of ``support/dtensor_checks.py`` and of layers."""

import pytest
from spawned import checks_of, hold, run_checks
from systems import FULL, in_full

pytestmark = pytest.mark.devices

FEW = {"products", "solvers", "qr_of_columns", "copies_that_differ_are_refused", "collectives_are_counted"}
FEW |= {"what_is_refused", "blocks_side_by_side", "copies_among_shards", "bases_in_files"}
FEW |= {"one_layer_at_a_time", "memory_of_cg", "processes_whose_data_go_other_ways"}
FEW |= {"squares_of_examples", "processes_with_fewer_batches", "what_goes_with_an_operator", "small_models_at_once"}
FEW |= {"fewer_outputs_than_parameters_on_some"}
"""What is checked where time is short."""
MODULES = "layer_checks", "dtensor_checks"  # whose last one leaves the processes out of step
NAMES = [pytest.param(name, marks=() if name in FEW else in_full) for of in MODULES for name in checks_of(of)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    names = None if FULL else sorted(FEW)
    return run_checks(tmp_path_factory.mktemp("processes"), " ".join(MODULES), 4, names, seconds=900 if FULL else 120)


@pytest.mark.parametrize("name", NAMES)
def test_on_all_processes(found, name):
    hold(found, name)
