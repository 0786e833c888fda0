"""What does a norm cost where people train? The benchmark's facts, read again: nothing is trained or compiled here."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.results import charts
from experiments.results.claims import Claim, Interval, Verdict, all_of, interval
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study
from experiments.results.tables import Table

FACTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "facts"
# By name, a target and what it costs there. No number is a time, but those of the CPU's single norms.
MACHINES = {
    "H100": ("gpu:h100", "gigabytes_moved"),
    "TPU-v5e": ("tpu:v5e:2x2", "estimated_cycles"),
    "TPU-v6e": ("tpu:v6e:2x2", "estimated_cycles"),
    "CPU": ("cpu", "gigabytes_moved"),
}
WORKS = {
    ("bottlenecks", "batch"): "bottlenecks, batch norm",
    ("bottlenecks", "group"): "bottlenecks, group norm",
    ("bottlenecks", "instance"): "bottlenecks, instance norm",
    ("encoder", "layer"): "encoder, layer norm (3 blocks)",
    ("encoder", "rms"): "encoder, RMS norm (3 blocks)",
    ("alone", "batch"): "batch norm, 32·56²·64",
    ("alone", "group"): "group norm, 32·56²·64",
    ("alone", "instance"): "instance norm, 32·56²·64",
    ("alone", "layer"): "layer norm, 8192·4096",
    ("alone", "rms"): "RMS norm, 8192·4096",
}
LIBRARIES = {"flax": "flax.linen", "bnjax": "bnjax, drop-in"}
DTYPE = "bfloat16"


def cells(quick: bool) -> list[Settings]:
    """A model, or one norm alone, with a norm, on a machine."""
    works = list(WORKS)[:1] if quick else list(WORKS)
    return [{"work": work, "norm": norm, "machine": machine} for work, norm in works for machine in MACHINES]


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """What each library needs there."""
    target, cost = MACHINES[settings["machine"]]
    what = WORKS[settings["work"], settings["norm"]]
    for library, contender in LIBRARIES.items():
        for fact in _facts("compiled"):
            own = (fact["what"], fact["target"], fact["dtype"], fact["contender"], fact["devices"])
            if own == (what, target, DTYPE, contender, 1):
                yield Measured(0, "cost", 0, float(fact[cost]), {"library": library})
                yield Measured(0, "megabytes", 0, float(fact["temporary_megabytes"]), {"library": library})


def _facts(name: str) -> list[dict[str, Any]]:
    return json.loads((FACTS / f"{name}.json").read_text(encoding="utf-8"))


def _cost(evidence: Evidence, work: str, norm: str, machine: str, library: str = "bnjax", of: str = "cost") -> float:
    settings = {"work": work, "norm": norm, "machine": machine, "library": library}
    return float(evidence.values(of, settings)[0])


def _ratio(evidence: Evidence, work: str, norm: str, other: str, machine: str) -> Interval:
    """What one norm costs, as a part of what another one does. The compilers always say the same: no interval."""
    return interval([_cost(evidence, work, norm, machine) / _cost(evidence, work, other, machine)])


def _of_machines(work: str, norm: str, other: str) -> Any:
    def figures(evidence: Evidence) -> Mapping[str, Interval]:
        return {_word(m): _ratio(evidence, work, norm, other, m) for m in MACHINES}

    return figures


def _word(machine: str) -> str:
    return machine.replace("-", "_")


def _beside_flax(evidence: Evidence) -> Mapping[str, Interval]:
    """The two models' costs with our classes, as a part of those with Flax's."""
    found = {}
    for work, norm in (("bottlenecks", "batch"), ("bottlenecks", "group"), ("encoder", "layer")):
        for machine in MACHINES:
            costs = [_cost(evidence, work, norm, machine, library) for library in ("bnjax", "flax")]
            found[f"{_word(machine)}_{norm}"] = interval([costs[0] / costs[1]])
    return found


def _all(figures: Mapping[str, Any], bound: float, *, above: bool) -> Verdict:
    return all_of([v.above(bound) if above else v.below(bound) for v in figures.values()])


CLAIMS = (
    Claim(
        "group norm in a convolutional network",
        "In bottlenecks of a ResNet, group norm costs more than batch norm on GPUs and TPUs: {H100.mean:.3f} times "
        "the bytes on an H100, {TPU_v5e.mean:.3f} and {TPU_v6e.mean:.3f} times the cycles on a TPU v5e and v6e.",
        _of_machines("bottlenecks", "group", "batch"),
        lambda f: _all({name: f[name] for name in ("H100", "TPU_v5e", "TPU_v6e")}, 1.0, above=True),
        "on one of them group norm cost no more",
    ),
    Claim(
        "RMS norm in the place of layer norm",
        "Compiled, RMS norm saves almost nothing. Found: an encoder with it costs {H100.mean:.3f} of one with layer "
        "norm on an H100, {TPU_v5e.mean:.3f} and {TPU_v6e.mean:.3f} on a TPU v5e and v6e, {CPU.mean:.3f} on a CPU.",
        _of_machines("encoder", "rms", "layer"),
        lambda f: _all(f, 0.95, above=True),
        "it saved 5 % or more on one of them",
        "Zhang and Sennrich measured 7 to 64 % less time (arXiv:1910.07467, abstract).",
        about="work",
    ),
    Claim(
        "one norm alone",
        "Alone, group norm costs as much as batch norm on the accelerators, within 6 %: {H100.mean:.3f} on an H100, "
        "{TPU_v5e.mean:.3f} and {TPU_v6e.mean:.3f} on a TPU v5e and v6e.",
        _of_machines("alone", "group", "batch"),
        lambda f: all_of(
            [v.below(1.06) for n, v in f.items() if n != "CPU"] + [v.above(0.94) for n, v in f.items() if n != "CPU"]
        ),
        "one of the three differed by more than 6 %",
    ),
    Claim(
        "our classes in the place of Flax's",
        "With our classes a network never costs more than 2 % over what it costs with Flax's. Found: bottlenecks with "
        "batch norm {H100_batch.mean:.3f} (H100), {TPU_v5e_batch.mean:.3f} (TPU v5e), {TPU_v6e_batch.mean:.3f} (TPU "
        "v6e), {CPU_batch.mean:.3f} (CPU); with group norm {H100_group.mean:.3f}, {TPU_v5e_group.mean:.3f}, "
        "{TPU_v6e_group.mean:.3f}, {CPU_group.mean:.3f}; an encoder with layer norm {H100_layer.mean:.3f}, "
        "{TPU_v5e_layer.mean:.3f}, {TPU_v6e_layer.mean:.3f}, {CPU_layer.mean:.3f}.",
        _beside_flax,
        lambda f: _all(f, 1.02, above=False),
        "one of the twelve were above 1.02",
    ),
)


def pictures(evidence: Evidence) -> list[Chart]:
    """The cost of each norm beside that of the first one, on each machine."""
    shown = [
        _picture(evidence, "bottlenecks", "Norms in a convolutional network", "batch"),
        _picture(evidence, "encoder", "Norms in a transformer", "layer"),
    ]
    return [chart for chart in shown if chart]


def _picture(evidence: Evidence, work: str, title: str, first: str) -> Chart | None:
    there = [norm for own, norm in WORKS if own == work and evidence.select({"work": own, "norm": norm})]
    if first not in there:
        return None
    costs = {(norm, m): _ratio(evidence, work, norm, first, m) for norm in there for m in MACHINES}
    rows = [{"machine": m, "norm": norm, **cost.named("cost")} for (norm, m), cost in costs.items()]
    cells = [[norm, *(f"{costs[norm, m].mean:.3f}" for m in MACHINES)] for norm in there]
    table = Table("Cost", ["", *MACHINES], cells)
    text = f"What a step costs with each norm; with {first} norm it is 1. Less is better."
    return Chart(title, text, charts.bars(rows, x="norm", y="cost", facet="machine", order=there), table)


STUDY = Study(
    name="efficiency",
    title="What a norm costs",
    question="Which norms are fast where people train, and what do our classes cost beside Flax's?",
    protocol=(
        "The programs of the benchmark (`python -m experiments.bench`): forward and backward in bfloat16, compiled by "
        "the compilers of an H100, of a TPU v5e and v6e, and of a CPU. The cost is what the compiler says: the "
        "estimated cycles on a TPU, the bytes that the program moves on the others. It says which program is better, "
        "and not by how much a training run is faster: nothing was run on a GPU or a TPU.\n\n"
        "The numbers are those of the page on performance; here they are only compared."
    ),
    cells=cells,
    run=run,
    seeds=1,
    constants={"dtype": DTYPE},
    claims=CLAIMS,
    charts=pictures,
)
