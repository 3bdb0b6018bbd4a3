"""The code of docs/torch_optim.md that needs libraries which the test environment lacks: its blocks marked ``py``."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "torch_optim.md"
BLOCK = re.compile(r"^```py\n(.*?)^```", re.MULTILINE | re.DOTALL)


def recipe(words):
    """What the one block with these words defines, by name."""
    (block,) = [block for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if words in block]
    scope = {"__name__": "recipe"}
    exec(compile(block, f"{PAGE.name}: {words}", "exec"), scope)
    return scope
