"""What each of several gloo processes checks of errors that one raises beside a sum; run with ``process_checks``."""

import time

import pytest
import torch
import torch.distributed as dist
from process_checks import LOSS, close, data, mine, network, parallel, raised

import linop_gn as lg


def asked(prepare, group):
    """What each process raises where the second one raises in ``prepare``, and the others ask for a value."""
    begun, other = time.monotonic(), dist.get_rank() == 1

    def script():
        with lg.distributed.telling(group):
            x, y = prepare(other)
            fit = parallel(network(), (x, y), group)
            return fit.value(network())

    message = raised((ValueError, TypeError, OSError, lg.distributed.OtherProcessError), script)
    assert time.monotonic() - begun < 20
    assert other or "process 1 of 3 raised" in message, message
    return message


def check_what_an_objective_refuses_is_told():
    """Data that are no pair, and a share that cannot be read."""

    def unread(other):
        return open("/no/such/share") if other else mine(*data())[:2]

    assert "No such file or directory: '/no/such/share'" in asked(unread, dist.new_group())
    group = dist.new_group()

    def script():
        with lg.distributed.telling(group):
            given = iter([mine(*data())]) if dist.get_rank() == 1 else mine(*data())
            lg.distributed.DataParallel(lg.Objective(network(), LOSS, given), group).value(network())

    message = raised((TypeError, ValueError, lg.distributed.OtherProcessError), script)
    assert dist.get_rank() == 1 or "process 1 of 3 raised" in message


def check_what_data_parallel_refuses_is_told():
    group, other = dist.new_group(), dist.get_rank() == 1

    def script():
        with lg.distributed.telling(group):
            own = lg.Objective(network(), LOSS, mine(*data()))
            lg.distributed.DataParallel(3 if other else own, group).value(network())

    message = raised((TypeError, lg.distributed.OtherProcessError), script)
    assert "takes an lg.Objective of this process's data, got a int" in message


def check_what_works_is_as_without():
    """And objectives of one process stay its own."""
    with lg.distributed.telling():
        fit, own = parallel(network(), mine(*data())), lg.Objective(network(), LOSS, data())
        close(fit.gradient(network()), own.gradient(network()))
        assert own.gradient(network()).keys() == fit.gradient(network()).keys()
    with lg.distributed.telling(fit.reduce):
        close(fit.value(network()), own.value(network()))
    dist.barrier()


def check_what_all_raise_leaves_them_in_step():
    fit = parallel(network(), mine(*data()))

    def script():
        with lg.distributed.telling():
            torch.ones(3) @ torch.ones(4)

    raised(RuntimeError, script)
    close(fit.value(network()), lg.Objective(network(), LOSS, data()).value(network()))


class SilentError(Exception):
    """Its text raises."""

    def __str__(self):
        raise LookupError


def check_whatever_is_raised_is_told():
    """Of an error that has no text, its kind; and of one that came of itself, once."""
    itself = ValueError("of itself")
    itself.__cause__ = itself
    for error, words in ((SilentError(), "SilentError"), (itself, "ValueError: of itself")):
        group, begun = dist.new_group(), time.monotonic()

        def script(error=error, group=group):
            with lg.distributed.telling(group):
                if dist.get_rank() == 1:
                    raise error
                parallel(network(), mine(*data()), group).value(network())

        with pytest.raises((type(error), lg.distributed.OtherProcessError)) as found:
            script()
        assert found.value is error or f"process 1 of 3 raised {words}\n" in str(found.value)
        assert time.monotonic() - begun < 20


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}
