"""Draws ``network_spectra.svg`` by what ``network_spectra.md`` computes: python docs/draw_spectra.py."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run the page's blocks, and keep the figure that they end with."""
    scope: dict[str, object] = {}
    page = (HERE / "network_spectra.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, scope)
    scope["figure"].savefig(HERE / "network_spectra.svg", metadata={"Date": None})  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
