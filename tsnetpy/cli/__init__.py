"""The command line: ``python -m tsnetpy``. There is no daemon; each command joins the tailnet by itself and leaves."""
