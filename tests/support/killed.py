"""A run with checkpoints, killed at random moments: ``python killed.py framework folder kills seed steps [events]``.

Each life is a process that goes on from the file. It logs, forced to the disk, each step that it has done before that
step is written, and where it began: so the log tells what each kill cost. Model, loader and order draw random numbers.
Prints kills, the steps lost in each, and whether the end has the bits of a run that nobody killed.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

import linop_gn as lg
from linop_gn.methods.checkpoint import Checkpoint

ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Batches:
    """In an order of NumPy's generator, with noise of Python's."""

    def __init__(self, ops):
        rng = np.random.default_rng(0)
        self.ops, self.x, self.y = ops, rng.standard_normal((40, 6)), rng.standard_normal((40, 1))

    def __iter__(self):
        order = np.random.permutation(40)  # noqa: NPY002
        for i in range(0, 40, 8):
            x = self.x[order[i : i + 8]] + 0.1 * random.random()
            yield tuple(self.ops.asarray(part, "float32") for part in (x, self.y[order[i : i + 8]]))


def model(p, x):
    """With dropout in torch, noise in NumPy."""
    xp = lg.namespace(p)
    if "torch" in sys.modules and isinstance(p, sys.modules["torch"].Tensor):
        x = sys.modules["torch"].nn.functional.dropout(x, 0.1)
    elif isinstance(p, np.ndarray):
        x = x + 0.1 * np.random.random(x.shape).astype(x.dtype)  # noqa: NPY002
    return xp.tanh(x @ p)[:, None]


def jacobian(p, x):
    return ((1 - np.tanh(x @ p) ** 2)[:, None] * x)[:, None, :]


def live(name, folder, steps, events=0):
    """Go on to the end, which is written as text; killed so many calls of functions after the beginning, if given."""
    ops, log = lg.load(name), os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def told(*words):
        os.write(log, f"{' '.join(map(str, words))}\n".encode())
        os.fsync(log)

    keep = Checkpoint.keep
    Checkpoint.keep = lambda self, run, cursor: (told("done", run.steps), keep(self, run, cursor))
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if name == "torch":
        sys.modules["torch"].manual_seed(0)
    fit = lg.Objective(model, lg.losses.SquaredError(), None, jacobian=jacobian if ops.calculus is None else None)
    method = lg.LevenbergMarquardt(damping=10.0, rule=lg.ConstantDamping())
    left, first = iter(range(events, 0, -1)), iter([True])

    def count_down(*_):
        if next(left) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def begun(look):
        if next(first, False):
            told("began", look.step)
            sys.setprofile(count_down if events else None)

    start = ops.asarray(np.zeros(6), "float32")
    options = {"batches": Batches(ops), "max_steps": steps, "checkpoint": folder / "run", "every": 1, "watch": [begun]}
    run = lg.minimize(fit, start, method, **options)
    sys.setprofile(None)
    (folder / "end").write_text(f"{np.asarray(run.params).tobytes().hex()} {int(run.steps)}")


def born(*arguments):
    """The process id of a life of its own."""
    child = os.fork()
    if not child:
        try:
            live(*arguments)
        finally:
            os._exit(0)
    return child


def kill(name, folder, kills, rng, steps, events):
    """Kill as often as the run has not ended by then."""
    killed, log = 0, folder / "log"
    while killed < kills and not (folder / "end").exists():
        size = log.stat().st_size if log.exists() else 0
        child = born(name, folder, steps, rng.randrange(events) + 1 if events else 0)
        if not events:
            while (log.stat().st_size if log.exists() else 0) == size and not os.waitid(os.P_PID, child, ENDED):
                time.sleep(1e-3)
            time.sleep(rng.uniform(0.0, 0.05))
            os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    return killed


def main(name, folder, kills, seed, steps, events=0):
    """Kill, go on to the end, compare."""
    folders = [Path(folder) / part for part in ("killed", "whole")]
    for each in folders:
        each.mkdir()
    killed = kill(name, folders[0], int(kills), random.Random(int(seed)), int(steps), int(events))
    for each in folders:
        os.waitpid(born(name, each, int(steps)), 0)
    lines = [line.split() for line in (folders[0] / "log").read_text().splitlines()]
    lost = [int(a[1]) - int(b[1]) for a, b in itertools.pairwise(lines) if b[0] == "began"]
    one, two = ((each / "end").read_text() for each in folders)
    print(json.dumps({"kills": killed, "lost": lost, "same bits": one == two, "steps": int(one.split()[1])}))


if __name__ == "__main__":
    lg.load(sys.argv[1])  # imported once; JAX begins nothing before it is used
    main(*sys.argv[1:])
