"""The version of this library, for user agents and host descriptions."""

from typing import Final

VERSION: Final = "0.1.0"
"""Kept equal to ``pyproject.toml`` by a test."""
