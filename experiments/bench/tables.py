"""The results as tables: on a terminal, in plain text, in the documents."""

from collections.abc import Iterable, Sequence
from typing import Any

from experiments.bench.op import geomean
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


COLUMNS = {  # of a compiled program: its fact, how it is written
    "temporary MB": ("temporary_megabytes", ".0f"),
    "GB moved": ("gigabytes_moved", ".2f"),
    "Gflop": ("gigaflops", ".1f"),
    "all-reduces": ("all_reduces", ".0f"),
    "convolutions": ("convolutions", ".0f"),
    "trace + compile s": ("seconds", ".1f"),
}
BASELINE = "flax.linen"


def model_tables(records: Records) -> list[Table]:
    """For every program and target the facts, and in brackets their ratio to Flax's."""
    made = []
    for title, group in grouped(records, "what", "target", "dtype", "versions"):
        facts = {r["contender"]: r | {"seconds": r["trace_seconds"] + r["compile_seconds"]} for r in group}
        base = facts.get(BASELINE)
        names = sorted(facts, key=lambda name: name != BASELINE)
        rows = [[n, *(_fact(facts[n], base, key, form) for key, form in COLUMNS.values())] for n in names]
        devices = f"{group[0]['devices']} device{'s' * (group[0]['devices'] > 1)}"
        made.append(Table(f"{title}, {devices}, each", ["", *COLUMNS], rows))
    return made


def _fact(facts: dict[str, Any], base: dict[str, Any] | None, key: str, form: str) -> str:
    written = f"{facts[key]:{form}}"
    if base is None or base is facts or not base[key]:
        return written
    return f"{written} ({facts[key] / base[key]:.2f})"


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


TABLES = {"op": op_tables, "model": model_tables, "step": step_tables, "import": import_tables}


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
