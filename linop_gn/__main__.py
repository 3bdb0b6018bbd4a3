"""``python -m linop_gn`` is ``linop-gn``."""

from .app.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
