"""``python -m tsnetpy.testing.packetdrill DIR``: run packetdrill scripts against this package's TCP."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tsnetpy.base.instant import MILLISECOND
from tsnetpy.testing.packetdrill.report import run_all, table
from tsnetpy.testing.packetdrill.runner import DEFINES
from tsnetpy.testing.packetdrill.settings import VARIANTS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scripts that the command line names; return 1 if one failed."""
    names = [variant.name for variant in VARIANTS]
    parser = argparse.ArgumentParser(prog="python -m tsnetpy.testing.packetdrill", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a script, or a folder of *.pkt")
    parser.add_argument("--variant", action="append", choices=[*names, "all"], help="default: plain; may be repeated")
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="NAME=VALUE", help="replace a word")
    parser.add_argument("--tolerance", type=int, default=4, metavar="MS", help="a packet may be so early or late")
    parser.add_argument("--no-passes", action="store_true", help="list only what failed or was skipped")
    parser.add_argument("--no-skips", action="store_true", help="do not list what was skipped")
    parser.add_argument("--trace", action="store_true", help="show the packets of scripts that failed")
    args = parser.parse_args(argv)
    wanted = args.variant or ["plain"]
    variants = [variant for variant in VARIANTS if "all" in wanted or variant.name in wanted]
    defines = dict(DEFINES)
    for text in args.defines:
        name, _, value = text.partition("=")
        defines[name] = value
    missing = [path for path in args.paths if not path.exists()]
    if missing:
        parser.error(f"no such file or folder: {missing[0]}")
    results = run_all(args.paths, variants, defines, args.tolerance * MILLISECOND)
    shown = [result for result in results if not (args.no_skips and result.status == "skip")]
    sys.stdout.write(table(shown, with_passes=not args.no_passes, with_traces=args.trace))
    return 1 if any(result.status == "fail" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
