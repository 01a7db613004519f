"""`make chaos SEED=... MINUTES=...`: one run; the report as JSON on stdout, progress on stderr.

Exit codes: 0 nothing was violated, 1 something was, 2 wrong usage.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import Chaos, Size, as_json, seed_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", help="of schedule and load (default: a random one, which is printed)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of faults (default: 5)")
    parser.add_argument("--nodes", type=int, default=300, help="simulated nodes (default: 300)")
    parser.add_argument("--agents", type=int, default=3, help="real agents (default: 3)")
    parser.add_argument(
        "--ttl", type=float, default=5.0, help="of the replicas' leases, seconds (default: 5)"
    )
    parser.add_argument("--slots", type=int, default=1024, help="of the fleet (default: 1024)")
    parser.add_argument("--keep", metavar="DIR", help="where logs are kept (default: nowhere)")
    parser.add_argument("--report", metavar="FILE", help="where the report goes as well (default: nowhere)")
    options = parser.parse_args()
    seed = seed_of(options.seed)
    size = Size(
        nodes=options.nodes,
        agents=options.agents,
        seconds=options.minutes * 60,
        ttl_s=options.ttl,
        slots=options.slots,
    )

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="cloudhub-chaos-", ignore_cleanup_errors=True) as made:
        root = Path(options.keep or made)
        root.mkdir(parents=True, exist_ok=True)
        chaos = Chaos(root, seed, size, say)
        try:
            report = chaos.run()
        except BaseException as failure:
            say(f"the run was not finished: {failure!r}")
            chaos.violations.append(f"the run was not finished: {failure!r}")
            report = {**chaos.report, "violations": chaos.violations}
            if isinstance(failure, KeyboardInterrupt):
                raise
    text = as_json(report)
    print(text)
    if options.report:
        Path(options.report).write_text(text + "\n")
    for violation in report["violations"]:
        say(f"VIOLATION: {violation}")
    return 1 if report["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
