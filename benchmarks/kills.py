"""A run is killed at random moments, 100 times by default: it must end in the bits of one that was not.

    python benchmarks/kills.py [framework] [kills]

Prints the most steps that a kill cost; with a checkpoint at every step that is one at most, the step in hand.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(ROOT), str(ROOT / "support")]

from test_running import kill_and_go_on  # noqa: E402


def main() -> None:
    """Kill, go on, compare."""
    framework = sys.argv[1] if len(sys.argv) > 1 else "numpy"
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    with tempfile.TemporaryDirectory() as folder:
        lost = kill_and_go_on(framework, folder, kills, seed=1, steps=8 * kills)
    print(f"{framework}: {len(lost)} kills, the same bits; at most {max(lost)} steps lost to the file")


if __name__ == "__main__":
    main()
