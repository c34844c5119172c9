"""Whether two checkouts have the same numbers: every CSV of two figures folders, byte by byte but for times.

    python benchmarks/same_numbers.py BEFORE AFTER

BEFORE and AFTER are folders like figures/. Of each profile the tables count that were made there (figures/ itself for
local, figures/PROFILE for others), and where none was made the published one of that name (figures/published/PROFILE);
an older checkout, which publishes where others only make, is compared by the same rule. A file with columns that hold
times, as dmcmc_core.report.compare knows them, is compared by the text of its other columns. Prints how many files
are the same, differ, or are in one folder alone, and ends with status 1 if any file is not the same.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from dmcmc_core.report.compare import is_time, read_cells, without_times

PROFILES = ("local", "full", "paper")


def tables(figures: Path) -> dict[str, Path]:
    """Return profile/name -> CSV of a figures folder."""
    found: dict[str, Path] = {}
    for profile in PROFILES:
        made = figures if profile == "local" else figures / profile
        for folder in (figures / "published" / profile, made):
            found |= {f"{profile}/{path.name}": path for path in sorted(folder.glob("*.csv"))}
    return found


def has_times(path: Path) -> bool:
    """Tell whether a CSV has a column that holds times."""
    return any(is_time(column) for row in read_cells(path)[:1] for column in row)


def first_difference(before: Path, after: Path) -> str:
    """Return where two CSVs differ first, in words; nothing where they are the same but for times."""
    if before.read_bytes() == after.read_bytes():
        return ""
    ours, theirs = without_times(read_cells(before)), without_times(read_cells(after))
    for number, (row, other) in enumerate(itertools.zip_longest(ours, theirs, fillvalue=()), 1):
        for column, a, b in itertools.zip_longest(ours[0], row, other, fillvalue="nothing"):
            if a != b:
                return f"line {number}, {column}: {a} before, {b} after"
    return "" if has_times(before) else "only in line ends or quotes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a folder like figures/")
    parser.add_argument("after", type=Path, metavar="AFTER", help="another one")
    a = parser.parse_args()
    before, after = tables(a.before), tables(a.after)
    for folder, found in ((a.before, before), (a.after, after)):
        if not found:
            parser.error(f"no tables of any profile in {folder}: name a folder like figures/")
    both = [name for name in before if name in after]
    different = {name: where for name in both if (where := first_difference(before[name], after[name]))}
    alone = {name: a.before for name in before if name not in after}
    alone |= {name: a.after for name in after if name not in before}
    print("".join(f"{name}: {where}\n" for name, where in different.items()), end="")
    print("".join(f"{name}: only in {folder}\n" for name, folder in alone.items()), end="")
    timed = sum(has_times(before[name]) for name in both)
    print(f"{len(both)} files in both folders, {timed} of them compared without the columns that hold times:")
    print(f"{len(both) - len(different)} the same, {len(different)} different; {len(alone)} only in one folder")
    return int(bool(different or alone))


if __name__ == "__main__":
    sys.exit(main())
