"""Runs are killed by SIGKILL at random moments, with a checkpoint at every step, in both kinds of files.

    python benchmarks/kills.py [--kills 100] [--safetensors FOLDER] [--save]

The kills are shared out over NumPy, torch and JAX, npz and safetensors (where that is installed, or lies in FOLDER),
and over moments by the clock and, in NumPy, by the count of calls. Each run must end in the bits of one that nobody
killed, and a kill may cost one step: the one that was done and not yet written.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from timing import save

KILLED = Path(__file__).parents[1] / "tests" / "support" / "killed.py"
CASES = {"numpy": 0, "numpy by calls": 5000, "torch": 0, "jax": 0}
STEPS = 30
"""For each kill: more than it lets the run do."""


def run(name: str, kills: int, events: int, seed: int, kind: str) -> dict[str, object]:
    """What came of so many kills."""
    words = [name.split()[0], "", str(kills), str(seed), str(STEPS * kills), str(events)]
    code = f"import runpy, sys; runpy.run_path({str(KILLED)!r}, run_name='__main__')"
    if kind == "npz":
        code = f"import linop_gn.methods.checkpoint as c; c.find_spec = lambda name: None; {code}"
    with tempfile.TemporaryDirectory() as words[1]:
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        written = (Path(words[1]) / "killed" / "run").read_bytes()[:2]
    assert (written == b"PK") == (kind == "npz"), written
    told = json.loads(done.stdout)
    lost = Counter(map(str, told["lost"]))
    return {"case": name, "file": kind, **told, "lost": dict(sorted(lost.items()))}


def main() -> None:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--safetensors", type=Path)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    if given.safetensors is not None:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(given.safetensors), os.environ.get("PYTHONPATH", "")])
        sys.path.insert(0, str(given.safetensors))
    kinds = ["npz"] + ["safetensors"] * (find_spec("safetensors") is not None)
    cases = [(name, kind) for kind in kinds for name in CASES]
    rows = []
    for i, (name, kind) in enumerate(cases):
        kills = given.kills // len(cases) + (i < given.kills % len(cases))
        rows.append(run(name, kills, CASES[name], i, kind))
        print(rows[-1], flush=True)
    kills, worst = sum(row["kills"] for row in rows), max(int(lost) for row in rows for lost in row["lost"])
    same = all(row["same bits"] for row in rows)
    print(f"{kills} kills, {'the same bits' if same else 'OTHER BITS'}; {worst} steps lost at most")
    if given.save:
        found = {"safetensors": version("safetensors")} if "safetensors" in kinds else {}
        save("kills", {**found, "kills": kills, "most steps lost": worst, "same bits": same, "runs": rows})
    sys.exit(not same or worst > 1)


if __name__ == "__main__":
    main()
