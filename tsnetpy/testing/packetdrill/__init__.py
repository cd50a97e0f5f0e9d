"""A runner for the packetdrill language on our own stack, in virtual time.

``python -m tsnetpy.testing.packetdrill DIR`` reads a checkout of scripts that the user supplies and prints a table.
The language is packetdrill's (github.com/google/packetdrill); this implementation was written from its published
grammar, shares no code with it, and executes neither the shell commands nor the Python of a script: it understands
those it knows and skips a script that needs others, with the reason.
"""

from .report import run_all, table
from .runner import Result, run_file, run_text
from .settings import VARIANTS, Variant

__all__ = ["VARIANTS", "Result", "Variant", "run_all", "run_file", "run_text", "table"]
