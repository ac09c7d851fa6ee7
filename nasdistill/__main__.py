"""``python -m nasdistill``."""

from nasdistill.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
