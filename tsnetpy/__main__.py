"""``python -m tsnetpy``: the command line."""

from tsnetpy.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
