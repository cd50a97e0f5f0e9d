"""Compile the sans-IO core with mypyc in a copy of the tree, and list the tests that run on it.

    python tools/compile_core.py build/compiled

Makes ``build/compiled/tsnetpy`` (sources and extension modules side by side) and ``core-tests.txt``. The compiled
modules stand beside the sources that they were made from, so an import finds them first; ``tests`` is copied too.
"""

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

PACKAGES = ["base", "crypto", "accel", "wire", "noise", "tcp", "nic", "wg", "disco", "derp", "ts2021", "dns", "ipstack", "dataplane"]
"""The sans-IO packages, bottom first. ``tailcfg`` is absent: its types are msgspec Structs, made by a metaclass."""

INTERPRETED = {
    "base/entropy.py",  # a Protocol and one call of the operating system
    "base/engine.py",  # a Protocol alone
    "accel/__init__.py",  # selects an implementation at import
}
"""Modules of these packages that stay interpreted, each with its reason."""


def modules() -> list[str]:
    """Return the files to compile, relative to the root."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / "tsnetpy" / package).glob("**/*.py")):
            relative = path.relative_to(ROOT / "tsnetpy").as_posix()
            if path.name != "__init__.py" and relative not in INTERPRETED:
                found.append(f"tsnetpy/{relative}")
    return found


def main() -> int:
    """Build the copy; return mypyc's exit status."""
    target = pathlib.Path(sys.argv[1]).resolve()
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "interop")
    for name in ("tsnetpy", "tests", "apps", "benchmarks"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", target)
    (target / "core-tests.txt").write_text(
        " ".join(f"tests/{name}" for name in PACKAGES if (ROOT / "tests" / name).is_dir()), encoding="utf-8"
    )
    (target / "setup.py").write_text(
        "from setuptools import setup\nfrom mypyc.build import mypycify\n"
        f"setup(name='tsnetpy-core', packages=[], ext_modules=mypycify({modules()!r}, opt_level='2', multi_file=True))\n",
        encoding="utf-8",
    )
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "-j", "2"]
    status = subprocess.call(command, cwd=target)
    if status == 0:
        built = len(list(target.glob("tsnetpy/**/*.so")))
        print(f"compiled {len(modules())} modules into {built} extension modules")
        (target / "setup.py").unlink()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
