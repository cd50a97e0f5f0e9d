"""Coverage-guided runs of a fuzz target by atheris, where it is installed."""

import gc
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType


def available() -> bool:
    """Tell whether atheris is installed."""
    return find_spec("atheris") is not None


def fuzz(one: Callable[[bytes], object], seconds: int, corpus: Path) -> None:
    """Feed inputs to *one* until the time is over; the process ends then, with 0 unless something was found.

    What was found stays in *corpus*, so that the next run goes on from there.
    """
    atheris = import_module("atheris")
    for function in [thing for thing in gc.get_objects() if isinstance(thing, FunctionType)]:
        if str(function.__module__).startswith("tsnetpy."):  # the rest of what is loaded would take most of a minute
            atheris.instrument_func(function)

    def once(data: bytes) -> None:
        one(data)

    corpus.mkdir(parents=True, exist_ok=True)
    limits = [
        f"-max_total_time={seconds}",
        "-seed=1",
        "-max_len=1500",
        "-len_control=0",
        "-timeout=5",
        "-rss_limit_mb=600",
    ]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={corpus.parent}/", str(corpus)], once)
    atheris.Fuzz()
