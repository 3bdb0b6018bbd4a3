"""What minimisations and fits say to ``logging``: to ``linop_gn.minimize`` and ``linop_gn.least_squares``.

``INFO`` that a run begins, where it is (every ten seconds at most), and how it ended; ``WARNING`` how it ended where
that is no success; ``DEBUG`` every look. Nothing is printed unless a program listens.
"""

from __future__ import annotations

import logging
import time

from .loop import Look
from .status import status_of

__all__ = ["Logged", "listening"]

PAUSE = 10.0
"""Seconds between two lines at ``INFO``."""

logging.getLogger("linop_gn").addHandler(logging.NullHandler())  # so that Python does not print what nobody asked for


def listening(door: str) -> list[Logged]:
    """The watcher of a run of ``lg.<door>``, where somebody listens."""
    log = logging.getLogger(f"linop_gn.{door}")
    return [Logged(log)] if log.isEnabledFor(logging.INFO) else []


class Logged:
    """A watcher that tells a logger.

    >>> import io
    >>> import numpy as np, linop_gn as lg
    >>> log, page = logging.getLogger("mine"), io.StringIO()
    >>> log.addHandler(logging.StreamHandler(page))
    >>> log.setLevel(logging.INFO)
    >>> _ = lg.solve(lg.Diagonal(np.array([1.0, 2.0])), np.ones(2), watch=[Logged(log)])
    >>> print(page.getvalue())
    CG begins at step 0, at most 20 steps
    CG: converged at step 2 after ... s; residual ... The tolerance was met.
    """

    def __init__(self, log: logging.Logger) -> None:
        self.log = log
        self._begun = self._said = time.perf_counter()

    def begin(self, look: Look) -> None:
        """Say that a run begins, or goes on."""
        self._begun = self._said = time.perf_counter()
        most = "" if look.limit is None else f", at most {look.limit} steps"
        self.log.info("%s begins at step %d%s", look.method, look.step, most)

    def __call__(self, look: Look) -> None:
        """Say where it is, if it is time to."""
        now = time.perf_counter()
        due = now - self._said >= PAUSE
        self._said = now if due else self._said
        level = logging.INFO if due else logging.DEBUG
        if look.running and self.log.isEnabledFor(level):
            self.log.log(level, "%s, step %d: %s", look.method, look.step, look.newest())

    def end(self, look: Look) -> None:
        """Say how it ended."""
        codes, seconds = status_of(look.status), time.perf_counter() - self._begun
        statuses = [] if look.running else codes if isinstance(codes, list) else [codes]
        bad = [status for status in statuses if not status.succeeded]
        names = ", ".join(dict.fromkeys(status.name.lower() for status in bad or statuses)) or "stopped"
        told = " ".join(dict.fromkeys(status.sentence for status in bad or statuses))
        said = "%s: %s at step %d after %.3g s; %s. %s"
        level = logging.WARNING if bad else logging.INFO
        self.log.log(level, said, look.method, names, look.step, seconds, look.newest(), told)
