"""`make bench`: all benches, one JSON object a line. ARGS names some of them: edge, hub."""

import sys

from tests.bench import edge, hub, report

BENCHES = {"hub": hub.main, "edge": edge.main}


def main() -> int:
    wanted = sys.argv[1:] or list(BENCHES)
    unknown = [name for name in wanted if name not in BENCHES]
    if unknown:
        print(f"no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    sys.argv[1:] = []
    report.machine()
    for name in wanted:
        BENCHES[name]()
    return 0


sys.exit(main())
