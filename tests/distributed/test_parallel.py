"""Errors beside sums, in one process; several run ``support/telling_checks.py``."""

import pytest

import linop_gn as lg


def test_without_a_group_and_with_a_reduction_of_ones_own():
    with pytest.raises(RuntimeError, match="there is no process group"), lg.distributed.telling():
        pass
    alone = lg.distributed.Reduction(lambda x: x, rank=0, size=1)
    with pytest.raises(KeyError, match="own"), lg.distributed.telling(alone):
        raise KeyError("own")
