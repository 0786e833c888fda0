"""Where one compiled program differs from another: the kernels that have no counterpart there, and what they cost."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.measure import hlo


class Key(NamedTuple):
    """What two kernels must have in common to be counterparts; layouts and order do not count."""

    kind: str
    operands: tuple[str, ...]
    results: tuple[str, ...]


def explain(text: str, other: str) -> dict[str, Any]:
    """The kernels of a program that have no counterpart in the other one, and those of the other one likewise.

    Costs are estimated cycles where the compiler gives them, and bytes read and written elsewhere.

    Returns:
      `unit`; `total`, what each of the two programs costs; `common`, what the kernels with a counterpart cost in each;
      and `without`, a list for each, dearest first, with `kind`, `operands`, `results`, `count`, `cost` and `share` of
      the total.
    """
    unit = "cycles" if hlo.estimated_cycles(text) else "bytes"
    sides = [_costs(t, unit) for t in (text, other)]
    totals = [sum(map(sum, side.values())) for side in sides]
    rest = [list(_without(mine, theirs)) for mine, theirs in (sides, sides[::-1])]
    common = [total - sum(row["cost"] for row in rows) for total, rows in zip(totals, rest, strict=True)]
    for total, rows in zip(totals, rest, strict=True):
        for row in rows:
            row["share"] = row["cost"] / total if total else 0.0
    dearest_first = [sorted(rows, key=lambda row: -row["cost"]) for rows in rest]
    return {"unit": unit, "total": totals, "common": common, "without": dearest_first}


def _costs(text: str, unit: str) -> dict[Key, list[int]]:
    types = {i.name: i.type for i in hlo.instructions(hlo.entry(text))}
    found: dict[Key, list[int]] = {}
    for i, size in hlo.traffic(text):
        key = Key(
            i.opcode.removesuffix("-start"),
            tuple(sorted(shape for name in i.operands for shape in hlo.shapes(types.get(name, "")))),
            tuple(sorted(hlo.shapes(i.type))),
        )
        found.setdefault(key, []).append(hlo.cycles_of(i) if unit == "cycles" else size)
    return found


def _without(mine: dict[Key, list[int]], theirs: dict[Key, list[int]]) -> Iterator[dict[str, Any]]:
    for key, costs in mine.items():
        if (count := len(costs) - len(theirs.get(key, ()))) > 0:  # all of one key stand for each other
            yield {**key._asdict(), "count": count, "cost": sum(costs) * count / len(costs)}
