"""The built site in a real browser: pages render, search finds, the console has no errors; with pictures to look at.

    python docs/browse.py site [--pictures DIR]      # needs Chromium; `nox -s browser` builds the site first

Each page is opened at a desk's width, in the dark and at a phone's width. A page fails where its heading is missing
from what was rendered, where the console has an error, or where anything is asked of another host.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome"
PAGES = {
    "index.html": "linop_gn",
    "guide.html": "Guide",
    "begin_torch.html": "In five minutes: PyTorch",
    "which.html": "Which",
    "zoo.html": "zoo",
    "gallery/index.html": "Gallery",
    "curvature.html": "Curvature",
    "losses.html": "Losses",
    "results.html": "What is in a result",
    "many_devices.html": "Many processes and devices",
    "performance.html": "Performance",
    "api/index.html": "Reference",
    "api/generated/linop_gn.MINRES.html": "MINRES",
}
SEARCH = "search.html?q=preconditioner"
WAYS = {"light": ("1300,1000", ()), "dark": ("1300,1000", ("--force-dark-mode",)), "phone": ("400,900", ())}


def browser() -> str | None:
    """The first browser that is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files, without a line for each."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def opened(program: str, url: str, size: str, more: tuple[str, ...], picture: Path | None = None) -> tuple[str, str]:
    """The rendered page, and what the console said."""
    with tempfile.TemporaryDirectory() as profile:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=8000", "--enable-logging=stderr", *more]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"]  # nothing is fetched from elsewhere
        command += ["--dump-dom"] if picture is None else [f"--screenshot={picture}"]
        done = subprocess.run([*command, url], capture_output=True, text=True, timeout=120)
    said = [
        line for line in done.stderr.splitlines() if "CONSOLE" in line and re.search(r"error|fail|refused", line, re.I)
    ]
    return done.stdout, "\n".join(said)


def main() -> int:
    """Open every page; returns 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of the pages")
    options = parser.parse_args()
    program = browser()
    if program is None:
        print(f"skipped: none of {', '.join(BROWSERS)} is installed")
        return 0
    server = http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(Quiet, directory=str(options.site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    front, wrong = f"http://localhost:{server.server_port}/", []
    for page, heading in PAGES.items():
        for way, (size, more) in WAYS.items():
            text, said = opened(program, front + page, size, more)
            if heading not in re.sub(r"<[^>]*>", "", text):
                wrong.append(f"{page} ({way}): no {heading!r} was rendered")
            if said:
                wrong.append(f"{page} ({way}): {said}")
            if options.pictures is not None:
                options.pictures.mkdir(parents=True, exist_ok=True)
                name = f"{page.removesuffix('.html').replace('/', '_')}_{way}.png"
                opened(program, front + page, size, more, options.pictures.absolute() / name)
    text, said = opened(program, front + SEARCH, *WAYS["light"])
    if "preconditioners.html" not in text or said:
        wrong.append(f"the search for a preconditioner does not find its page. {said}")
    server.shutdown()
    print("\n".join(wrong) or f"{len(PAGES)} pages in {len(WAYS)} ways, and the search: as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
