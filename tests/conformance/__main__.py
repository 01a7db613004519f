"""See `tests.conformance.suite`."""

import argparse
import sys

from tests.conformance import suite

parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=suite.__doc__)
parser.add_argument(
    "--platform", action="append", default=[], help="one alone; may be repeated (default: all)"
)
parser.add_argument("--short", action="store_true", help="less of each")
parser.add_argument("--power-cuts", action="store_true", help="nothing else")
parser.add_argument("--seed", type=int, default=1, help="(default: 1)")
options = parser.parse_args()
sys.exit(suite.main(not options.short, tuple(options.platform), options.seed, options.power_cuts))
