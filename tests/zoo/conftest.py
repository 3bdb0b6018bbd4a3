"""Only the tests are collected: the architectures import libraries that may be missing, and have no doctests."""

from pathlib import Path

collect_ignore = [path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")]
