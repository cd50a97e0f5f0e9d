"""Compile the sans-IO core with mypyc in a copy of the tree, and list the tests that run on it.

    python tools/compile_core.py build/compiled [--opt-level 2]

Makes ``build/compiled/tsnetpy`` (sources and extension modules side by side) and ``core-tests.txt``. The compiled
modules stand beside the sources that they were made from, and an import finds them first; ``tests`` and the programs
that use the library are copied too, so that all of them can be run on the compiled core.
"""

import argparse
import os
import pathlib
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor

from mypyc.build import mypycify
from setuptools import Distribution
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).resolve().parent.parent

PACKAGES = [
    "base",
    "crypto",
    "accel",
    "wire",
    "noise",
    "tcp",
    "nic",
    "wg",
    "disco",
    "derp",
    "ts2021",
    "dns",
    "ipstack",
    "dataplane",
]
"""The sans-IO packages, bottom first. ``tailcfg`` is absent: its types are msgspec Structs, made by a metaclass."""

USERS = ["tailcfg", "magicsock", "netstack", "node", "control", "wireguard", "testing"]
"""Interpreted packages whose tests run on the compiled core as well: they call it in every way that a program does."""

INTERPRETED = {
    "base/errors.py": "DialError is a TsnetError and an OSError; a compiled class has one base",
}
"""Modules of these packages that stay interpreted, each with its reason. ``__init__.py`` files only re-export."""


class ParallelBuild(build_ext):
    """Compiles the C files of one extension side by side; setuptools by itself only builds whole extensions so."""

    def build_extensions(self) -> None:
        """Build everything, with as many C files at a time as there are processors."""
        compiler = self.compiler
        compile_one, link = compiler._compile, compiler.link_shared_object
        pending: list[Future[None]] = []

        def compile_later(*arguments: object) -> None:
            pending.append(pool.submit(compile_one, *arguments))

        def link_after(*arguments: object, **options: object) -> None:
            while pending:
                pending.pop().result()
            link(*arguments, **options)

        compiler._compile, compiler.link_shared_object = compile_later, link_after
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            super().build_extensions()


def modules() -> list[str]:
    """Return the files to compile, relative to the root."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / "tsnetpy" / package).glob("**/*.py")):
            relative = path.relative_to(ROOT / "tsnetpy").as_posix()
            if path.name != "__init__.py" and relative not in INTERPRETED:
                found.append(f"tsnetpy/{relative}")
    return found


def copy_tree(target: pathlib.Path) -> None:
    """Make a fresh copy of what the tests and the programs need."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "interop")
    for name in ("tsnetpy", "tests", "apps", "benchmarks", "tools", "docs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target)
    tests = [f"tests/{name}" for name in [*PACKAGES, *USERS] if any((ROOT / "tests" / name).glob("test_*.py"))]
    (target / "core-tests.txt").write_text(" ".join(["tests/test_compiled.py", *tests]), encoding="utf-8")


def main() -> int:
    """Build the copy."""
    parser = argparse.ArgumentParser(description="Compile the sans-IO core with mypyc in a copy of the tree.")
    parser.add_argument("target", type=pathlib.Path, help="folder for the copy; made anew")
    parser.add_argument("--opt-level", default="2", choices=["0", "1", "2", "3"], help="of the C compiler")
    arguments = parser.parse_args()
    target = arguments.target.resolve()
    copy_tree(target)
    os.chdir(target)
    started = time.monotonic()
    sources = modules()
    extensions = mypycify(
        ["--config-file", "pyproject.toml", *sources], opt_level=arguments.opt_level, debug_level="0", multi_file=True
    )
    print(f"{len(sources)} modules translated in {time.monotonic() - started:.0f} s", flush=True)
    # No project metadata is read here: this is not a package being made, and an old setuptools knows fewer fields.
    distribution = Distribution({"name": "tsnetpy-core", "packages": [], "ext_modules": extensions})
    distribution.verbose = 0
    command = ParallelBuild(distribution)
    command.inplace = True
    command.ensure_finalized()
    command.run()
    shutil.rmtree(target / "build")
    built = len(list(target.glob("tsnetpy/**/*.so")))
    print(f"{built} extension modules built in {time.monotonic() - started:.0f} s")
    return 0 if built >= len(sources) else 1


if __name__ == "__main__":
    sys.exit(main())
