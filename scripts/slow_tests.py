"""Write the list of tests that `make test-fast` leaves out: those that took over a second in a run of `make test`.

make test ARGS=--durations=0 | tee run.log; python scripts/slow_tests.py < run.log
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

LIST = Path(__file__).parents[1] / "tests" / "slow.txt"
MOST_S = 1.0
DURATION = re.compile(r"([\d.]+)s (?:setup|call|teardown) +(tests/\S+?::[^\s\[]+)")


def slow(lines: Iterable[str]) -> list[str]:
    """The tests, all parameters of one together, that took longer than `MOST_S` with their fixtures."""
    taken: dict[str, float] = defaultdict(float)
    for line in lines:
        if found := DURATION.match(line):
            taken[found[2]] += float(found[1])
    return sorted(name for name, seconds in taken.items() if seconds > MOST_S)


if __name__ == "__main__":
    names = slow(sys.stdin)
    if not names:
        sys.exit("there are no durations in that run; add ARGS=--durations=0")
    LIST.write_text("\n".join(names) + "\n")
    print(f"{len(names)} tests are slow")
