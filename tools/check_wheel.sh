#!/bin/sh
# Builds the source distribution, and the wheel from it; then installs the wheel alone into an empty environment and
# runs it outside the checkout, so that a file or a dependency that only the checkout has is missed here and not later.
#
#   tools/check_wheel.sh PYTHON     an interpreter that has the `build` package
set -eu
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
cd "$root"
trap 'rm -rf "$work"' EXIT

rm -rf dist
"$python" -m build --outdir dist . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
wheel=$(ls "$root"/dist/tsnetpy-*-py3-none-any.whl)

"$python" - "$wheel" <<'EOF'
import pathlib, sys, zipfile

wheel = zipfile.ZipFile(sys.argv[1])
names = wheel.namelist()
package = {name for name in names if name.startswith("tsnetpy/")}
info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
problems = [f"does not belong into the wheel: {name}" for name in set(names) - package - info]
problems += [f"not a source: {name}" for name in package if not name.endswith((".py", "/py.typed"))]
sources = {path.as_posix() for path in pathlib.Path("tsnetpy").rglob("*.py")} | {"tsnetpy/py.typed"}
problems += [f"absent from the wheel: {name}" for name in sources - package]
if not any(name.endswith("/licenses/LICENSE") for name in info):
    problems.append("the wheel has no licence")
print(f"{len(package)} files, {wheel.filename.rpartition('/')[2]}")
sys.exit("\n".join(problems) or 0)
EOF

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
cd "$work"
venv/bin/python -m pip check
venv/bin/tsnetpy --help >/dev/null
venv/bin/python -m tsnetpy --help | head -1
venv/bin/python -m tsnetpy.serve --help >/dev/null
# Everything imports with the required dependencies alone, except what one of the extras is for.
venv/bin/python -W error - <<'EOF'
import importlib, pkgutil, sys

import tsnetpy

assert "site-packages" in tsnetpy.__file__, tsnetpy.__file__
extras, count = {"paramiko", "segno", "trio", "httpx"}, 0
for module in pkgutil.walk_packages(tsnetpy.__path__, "tsnetpy."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in extras:
            sys.exit(f"{module.name} needs {error.name}, which no dependency brings")
        print(f"{module.name} needs the extra with {error.name}")
    else:
        count += 1
print(f"{count} modules import")
EOF
