"""Processes as threads: a reduction that counts, between objectives with a share of the data each."""

import threading
import time

import numpy as np

import linop_gn as lg


class OfThreads(lg.distributed.Reduction):
    """The reduction of one of ``size`` threads, which write their arrays side by side and add up all of them."""

    def __init__(self, rank, size, room, barrier):
        super().__init__(lambda x: x, rank, size)
        self.room, self.barrier, self.sent = room, barrier, []

    def all_reduce(self, ops, x):
        self.sent.append(x.shape[0])
        self.room[self.rank] = np.array(ops.to_numpy(x))
        self.barrier.wait()
        parts = [self.room[rank] for rank in range(self.size)]
        self.barrier.wait()
        assert len({part.shape for part in parts}) == 1, "the processes are out of step"
        return ops.asarray(sum(parts[1:], parts[0]), ops.describe(x)[1], ops.describe(x)[2])


def on_threads(size, work, plain=False):
    """``work(reduction)`` of each of ``size`` threads: what they return; the first error that one of them raised."""
    room, barrier, found, errors = {}, threading.Barrier(size, timeout=30), [None] * size, []

    def run(rank):
        reduction = OfThreads(rank, size, room, barrier)
        try:
            found[rank] = work(reduction)
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            errors.append((rank, error))
            time.sleep(0.1)  # the others may be on their way out of the barrier, to raise the same
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise min(errors, key=lambda pair: pair[0])[1]
    return found


def share(size, rank, *arrays, cuts=None):
    """The rows of each array that belong to one process: those between two of ``cuts``, or equally many."""
    cuts = [len(arrays[0]) * r // size for r in range(size + 1)] if cuts is None else cuts
    return tuple(x[cuts[rank] : cuts[rank + 1]] for x in arrays)
