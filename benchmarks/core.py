"""The compiled core for ``make bench``: built once, and again when a source changed."""

import hashlib
import os
import pathlib
import subprocess
import sys
from typing import Final

import tsnetpy.tcp.connection

ROOT: Final = pathlib.Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "build" / "compiled"
SOURCES: Final = ("tsnetpy", "benchmarks", "tools")
STAMP: Final = "bench.sha256"


class BuildError(Exception):
    """The core could not be compiled; says how the compiler ended."""


def digest(root: pathlib.Path) -> str:
    """Return a digest of everything that a build is made of."""
    hashed = hashlib.sha256(sys.version.encode())
    files = [path for name in SOURCES for path in (root / name).rglob("*.py")]
    for path in sorted([*files, root / "pyproject.toml"]):
        data = path.read_bytes()
        hashed.update(f"{path.relative_to(root)} {len(data)}\n".encode())
        hashed.update(data)
    return hashed.hexdigest()


def ensure(folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Compile the core into *folder* unless it was made from just these sources; return *folder*.

    Raises:
        BuildError: there is no C compiler, or it fails.
    """
    stamp, wanted = folder / STAMP, digest(ROOT)
    if stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
        return folder
    print("compiling the core (a minute or two)", file=sys.stderr)
    command = [sys.executable, "tools/compile_core.py", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BuildError(f"tools/compile_core.py ended with {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    if digest(folder) != wanted:
        raise BuildError("sources changed while the core was compiled")
    stamp.write_text(wanted, encoding="ascii")
    return folder


def is_compiled() -> bool:
    """Tell whether this process runs the core as extension modules."""
    return not str(tsnetpy.tcp.connection.__file__).endswith(".py")


def is_build(folder: pathlib.Path) -> bool:
    """Tell whether *folder* has a compiled core."""
    return any((folder / "tsnetpy").rglob("*.so"))


def environment() -> dict[str, str]:
    """Return an environment in which Python finds the program's folder only."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
