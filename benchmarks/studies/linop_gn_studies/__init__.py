"""Published experiments with second-order methods, re-run with the parts of linop_gn: ``linop-gn study list``.

A method of one's own enters one in a few lines:

    # mine.py
    import linop_gn as lg
    from linop_gn_studies import Entry

    entry = Entry("GN, damping 1", lambda: lg.GaussNewton(damping=1.0), full_batch=True)

    $ linop-gn study slides --quick --method mine:entry
"""

from __future__ import annotations

from .plan import Entry, Form, Picture, Results, Run, Study, Verdict, judged
from .training import Task, train

__all__ = ["Entry", "Form", "Picture", "Results", "Run", "Study", "Task", "Verdict", "judged", "train"]
