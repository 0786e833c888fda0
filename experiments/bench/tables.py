"""The results as tables: on a terminal, in plain text, in the documents."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from experiments.bench.op import geomean
from experiments.bench.rows import STEP as STEP
from experiments.bench.work import shape_name
from experiments.results.tables import Table

Records = Sequence[dict[str, Any]]


def op_tables(records: Records) -> list[Table]:
    """For every work and dtype the times, and what they are worth."""
    made = []
    for title, group in grouped(records, "work", "dtype"):
        head = ["", *(shape_name(tuple(r["shape"])) for r in group)]
        names = list(dict.fromkeys(name for r in group for name in r["contenders"]))
        cells = {name: [r["contenders"].get(name) for r in group] for name in names}
        times = [[name, *(_times(c) for c in cells[name])] for name in names]
        times.append(["floor", *(milliseconds(r["floor_seconds"]) for r in group)])
        times.append(["copy, GB/s", *(f"{r['copy_gigabytes_per_second']:.1f}" for r in group)])
        ratios = [[name, *map(_ratios, cells[name]), _mean_ratios(cells[name])] for name in names]
        made.append(Table(f"{title}: least / median time, ms", head, times))
        made.append(Table(
            f"{title}: speed against the fastest peer on JAX / time over the floor", [*head, "geometric mean"], ratios
        ))  # fmt: skip
    return made


def _times(cell: dict[str, float] | None) -> str:
    return "" if cell is None else f"{milliseconds(cell['min_seconds'])} / {milliseconds(cell['median_seconds'])}"


def _ratios(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    peer = cell["against_best_jax_peer"]
    return f"{'-' if peer is None else f'{peer:.2f}'} / {cell['over_floor']:.2f}"


def _mean_ratios(cells: Sequence[dict[str, Any] | None]) -> str:
    there = [c for c in cells if c is not None]
    if len(there) < len(cells):
        return ""
    peers = [c["against_best_jax_peer"] for c in there if c["against_best_jax_peer"] is not None]
    return _ratios({
        "against_best_jax_peer": geomean(peers) if peers else None,
        "over_floor": geomean([c["over_floor"] for c in there]),
    })  # fmt: skip


COLUMNS = {  # of a compiled program: its fact, how it is written; left out where it is nothing
    "estimated cycles": ("estimated_cycles", ",.0f"),
    "GB moved": ("gigabytes_moved", ".3f"),
    "temporary MB": ("temporary_megabytes", ".1f"),
    "collectives": ("collectives", ".0f"),
    "kernels": ("kernels", ".0f"),
    "Gflop": ("gigaflops", ".1f"),
    "convolutions": ("convolutions", ".0f"),
    "trace + lower s": ("trace_seconds", ".2f"),
    "compile s": ("compile_seconds", ".2f"),
}
BASELINE, DROP_IN = "flax.linen", "bnjax, drop-in"
SHOWN = 10  # kernels of an explanation


def compiled_tables(records: Records) -> list[Table]:
    """All that is known of compiled programs."""
    return [*ratio_tables(records), *fact_tables(records), *explanation_tables(records)] if records else []


def fact_tables(records: Records) -> list[Table]:
    """For every target and dtype the facts of all programs, and in brackets their ratio to Flax's."""
    made = []
    for title, group in grouped(records, "target", "dtype", "versions"):
        bases = _bases(group)
        columns = {name: (key, form) for name, (key, form) in COLUMNS.items() if any(r[key] for r in group)}
        lines = [
            [_program(r), *(_fact(r, bases.get(_compared(r)), key, form) for key, form in columns.values())]
            for r in group
        ]
        made.append(Table(f"{title}; seconds: the least of {min(r['repeats'] for r in group)}", ["", *columns], lines))
    return made


def _compared(record: dict[str, Any]) -> tuple[str, str, str]:
    """What the records of one comparison have in common."""
    return record["what"], record["target"], record["dtype"]


def _bases(records: Records) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Flax's records, by what they are compared with."""
    return {_compared(r): r for r in records if r["contender"] == BASELINE}


def _program(record: dict[str, Any]) -> str:
    devices = f", {record['devices']} devices" if record["devices"] > 1 else ""
    return f"{record['what']}{devices}: {record['contender']}"


def _fact(facts: dict[str, Any], base: dict[str, Any] | None, key: str, form: str) -> str:
    written = f"{facts[key]:{form}}"
    if base is None or base is facts or not base[key]:
        return written
    return f"{written} ({facts[key] / base[key]:.3f})"


def ratio_tables(records: Records) -> list[Table]:
    """Ratios to Flax: a row a program, a column a machine and dtype."""
    return [_against_flax(records, _label, "estimated cycles on a TPU, bytes moved elsewhere")]


def overview_tables(records: Records, timed: Records = ()) -> list[Table]:
    """The same of the classes in Flax's place, all shapes of a norm in one row; on the CPU with the times of norms."""
    chosen = [r for r in [*records, *_as_compiled(timed)] if r["contender"] in (BASELINE, DROP_IN)]
    shown = [r | {"gigabytes_moved": 0} if r["target"] == "cpu" else r for r in chosen]
    return [_against_flax(shown, _kind, "time on a CPU, estimated cycles on a TPU, bytes moved on a GPU")]


def _as_compiled(timed: Records) -> Iterable[dict[str, Any]]:
    """The least times of norms as records of compiled programs, which they have no more facts of."""
    for r in timed:
        what = re.sub("^norm", "batch norm", r["work"]) + f", {shape_name(tuple(r['shape']))} timed"
        for theirs, name in (("flax.linen", BASELINE), ("bnjax.linen", DROP_IN)):
            if cell := r["contenders"].get(theirs):
                yield {
                    "what": what, "target": "cpu", "dtype": r["dtype"], "contender": name,
                    "seconds": cell["min_seconds"], "temporary_megabytes": 0,
                }  # fmt: skip


def _label(record: dict[str, Any]) -> str:
    return f"{record['what']}: {record['contender']}"


def _kind(record: dict[str, Any]) -> str:
    return re.sub(r", \d\S*( timed)?$", "", record["what"])


def _against_flax(records: Records, label: Callable[[dict[str, Any]], str], costs: str) -> Table:
    bases = _bases(records)
    cells: dict[str, dict[str, list[tuple[float | None, float | None]]]] = {}
    for r in records:
        if r["contender"] != BASELINE and (base := bases.get(_compared(r))):
            machine = f"{r['target']}, {r['dtype']}"
            cells.setdefault(label(r), {}).setdefault(machine, []).append(_ratio(r, base))
    machines = sorted({m for row in cells.values() for m in row})
    lines = [[name, *(_range(row.get(m, []), m) for m in machines)] for name, row in cells.items()]
    return Table(f"{BASELINE} = 1: {costs} / temporary memory", ["", *machines], lines)


def _ratio(record: dict[str, Any], base: dict[str, Any]) -> tuple[float | None, float | None]:
    """What it costs, and the memory where there is any to speak of, both against Flax."""
    cost = next((key for key in ("seconds", "estimated_cycles", "gigabytes_moved") if base.get(key)), None)
    memory = record["temporary_megabytes"] / base["temporary_megabytes"] if base["temporary_megabytes"] >= 1 else None
    return None if cost is None else record[cost] / base[cost], memory


def _range(ratios: Sequence[tuple[float | None, float | None]], machine: str) -> str:
    """Both ratios, each from the least to the largest. Times are not worth three digits."""
    both = [[value for value in found if value is not None] for found in zip(*ratios, strict=True)]
    written = [
        "-".join(dict.fromkeys(f"{value:{form}}" for value in (min(found), max(found)))) if found else "-"
        for found, form in zip(both, (".2f" if machine.startswith("cpu") else ".3f", ".2f"), strict=False)
    ]
    return " / ".join(written).removesuffix(" / -") if any(both) else ""


def explanation_tables(records: Records) -> list[Table]:
    """For every program that was explained, the kernels that only one of the two has."""
    return [_explanation(r) for r in records if "explained" in r]


def _explanation(record: dict[str, Any]) -> Table:
    found, names = record["explained"], (record["contender"], BASELINE)
    both = [_cost(cost, cost / total) for cost, total in zip(found["common"], found["total"], strict=True)]
    lines = [["in both", "", "", *both]]
    for side, kernels in enumerate(found["without"]):
        for k in _dearest(kernels):
            cells = ["", ""]
            cells[side] = _cost(k["cost"], k["share"])
            shapes = " → ".join(", ".join(k[key]) for key in ("operands", "results"))
            lines.append([f"only {names[side]}", f"{k['count']} {k['kind']}", shapes, *cells])
    title = f"{_program(record)}, {record['target']}, {record['dtype']}: kernels with and without a counterpart"
    return Table(title, ["", "kernels", "operands → results", *(f"{found['unit']}, {n}" for n in names)], lines)


def _dearest(kernels: Records) -> Records:
    """The first few, and all others as one."""
    rest = kernels[SHOWN:]
    sums = {key: sum(k[key] for k in rest) for key in ("count", "cost", "share")}
    return [*kernels[:SHOWN], {"kind": "others", "operands": [], "results": [], **sums}] if rest else kernels


def _cost(cost: float, share: float) -> str:
    return f"{cost:,.0f} ({share:.1%})"


def step_tables(records: Records) -> list[Table]:
    """For every dtype the times of a step, and the speed against Flax."""
    made = []
    for title, group in grouped(records, "what", "dtype"):
        base = {r["contender"]: r["min_seconds"] for r in group}.get(BASELINE)
        rows = [
            [r["contender"], _times(r), "-" if base is None else f"{base / r['min_seconds']:.2f}"]
            for r in sorted(group, key=lambda r: r["contender"] != BASELINE)
        ]
        made.append(Table(title, ["", "least / median time, ms", f"speed against {BASELINE}"], rows))
    return made


def import_tables(records: Records) -> list[Table]:
    """The times of the imports."""
    rows = [[r["contender"], _times(r)] for r in records]
    return [Table("Import, JAX and Flax being there", ["", "least / median time, ms"], rows)] if rows else []


TABLES = {"op": op_tables, "compiled": compiled_tables, "step": step_tables, "import": import_tables}


def grouped(records: Records, *keys: str) -> Iterable[tuple[str, Records]]:
    """The records that agree in `keys`, each group with a title, in the order in which they came."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(", ".join(record[key] for key in keys), []).append(record)
    return groups.items()


def milliseconds(seconds: float) -> str:
    """Three digits.

    >>> milliseconds(0.0123456), milliseconds(0.25)
    ('12.3', '250')
    """
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
