"""Recomputes every number of a run's report from the run's stored files, without the code that made them.

    python tests/recompute.py RUN_FOLDER

It reads the ledger, the trials' predictions and the kept texts, works out anew what `report/comparison.json` and
`report/index.html` say, and prints each number that does not come out again. Nothing of the package is imported: scores
are scikit-learn's, and all else is written from the documented definitions. It exits with 1 where anything differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.recomputed.comparison import check_comparison, recomputed
from tests.recomputed.printed import Checks
from tests.recomputed.report import check_page
from tests.recomputed.stored import read_run


def recompute(folder: Path) -> Checks:
    """Returns what was checked of the report in a run's folder, and what was wrong."""
    checks = Checks()
    stored = read_run(folder)
    found = recomputed(stored, checks)
    check_comparison(stored, found, checks)
    check_page(stored, found, checks)
    return checks


def main() -> int:
    if len(sys.argv) != 2:
        print("Type: python tests/recompute.py RUN_FOLDER")
        return 2
    checks = recompute(Path(sys.argv[1]))
    for one in checks.wrong:
        print(one)
    for one in checks.skipped:
        print(f"not recomputed: {one}")
    print(f"{checks.count:,} numbers checked, {len(checks.wrong):,} wrong")
    return 1 if checks.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
