"""Every layout in every direction, with its error: `python -m tests.convert_table`, and `--write` into the guide.

The largest difference of the outputs, relative to the largest entry. Needs PyTorch and Keras (`bnjax[convert]`).
"""

import re
import sys
from pathlib import Path

from tests.convert.cases import CASES
from tests.convert.table import ALL, DIRECTIONS, error

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "other_weights.md"
PLACE = re.compile(r"(?<=<!-- layouts -->\n).*?(?=<!-- /layouts -->)", re.DOTALL)


def main(write):
    table = f"| layout | {' | '.join(DIRECTIONS)} |\n| --- |{' ---: |' * len(DIRECTIONS)}\n"
    for name in CASES:
        cells = [f"{error(d, name):.0e}" if (d, name) in ALL else "" for d in DIRECTIONS]
        table += f"| {name} | {' | '.join(cells)} |\n"
        print(table.splitlines()[-1], flush=True)
    if write:
        PAGE.write_text(PLACE.sub(lambda _: table, PAGE.read_text()))


if __name__ == "__main__":
    main("--write" in sys.argv)
