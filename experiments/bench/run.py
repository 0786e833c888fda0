"""One run of the benchmark: measure part by part, save, show."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from experiments.bench import documents, imports, model, op, step
from experiments.bench.options import Arguments
from experiments.bench.picture import save_bars
from experiments.bench.tables import STEP, TABLES, fact_tables, overview_tables, ratio_tables
from experiments.cli.errors import UserError
from experiments.cli.report import Report, reporting
from experiments.measure import machine
from experiments.results.files import write_text

HIDDEN = ("workdir", "tpu_python", "gpu_python", "write", "found")  # where, not what


class Results:
    """What was found so far, always on disk, too."""

    def __init__(self, path: Path, arguments: Arguments, report: Report):
        self._path, self._report = path, report
        settings = {k: v for k, v in dataclasses.asdict(arguments).items() if k not in HIDDEN}
        self.found: dict[str, Any] = {"machine": machine.machine(), "arguments": settings, "left_out": []}
        self.found |= {"compiled" if part == "model" else part: [] for part in arguments.parts}

    def add(self, part: str, record: dict[str, Any]) -> None:
        self.found[part].append(record)
        write_text(self._path, json.dumps(self.found, indent=1) + "\n")

    def leave_out(self, sentence: str) -> None:
        if sentence not in self.found["left_out"]:
            self.found["left_out"].append(sentence)
            self._report.line(f"Left out: {sentence}")


def bench(arguments: Arguments) -> dict[str, Any]:
    """Measures what `arguments` ask for in this process, shows and saves it, and returns all of it."""
    workdir = claim(arguments)
    cases = op.cases(arguments) if "op" in arguments.parts else []
    compiles = not {"compiled", "model"}.isdisjoint(arguments.parts)
    tasks = model.tasks(arguments) if compiles and model.works(arguments) else []
    if tasks:
        model.kept(Path(arguments.found))  # refuses what is no such file, before anything is compiled
    total = len(cases) + len(tasks) + ("step" in arguments.parts) + ("import" in arguments.parts)
    with reporting(total) as report:
        results = Results(workdir / "bench.json", arguments, report)
        report.line(conditions(results.found))
        if cases:
            for sentence in op.absent(arguments):
                results.leave_out(sentence)
        for case in cases:
            report.title(str(case))
            results.add("op", op.measure(case, arguments))
            report.advance()
        for target, dtype in tasks:
            report.title(f"compiling for {target}, {dtype}")
            log = workdir / f"{str(target).replace(':', '-')}-{dtype}.log"
            for record in model.measure(target, dtype, arguments, log, results.leave_out):
                results.add("compiled", record)
                model.keep(Path(arguments.found), record)
                report.line(f"{record['what']}: {record['contender']}")
            report.advance()
        for part, measure in (("step", _step), ("import", imports.measure)):
            if part in arguments.parts:
                report.title({"step": "a small model", "import": "imports"}[part])
                for record in measure(arguments):
                    results.add(part, record)
                report.advance()
    show(results.found, report)
    save(results.found, arguments, workdir)
    report.line(f"Everything is in {workdir}.")
    return results.found


def _step(arguments: Arguments) -> Any:
    return step.measure(arguments, step.WHOLE if arguments.large else step.SMALL)


def claim(arguments: Arguments) -> Path:
    """The run folder, new."""
    workdir = Path(arguments.workdir)
    if (workdir / "bench.json").exists():
        raise UserError(f"`{workdir}` already holds a run; name another `--workdir`.")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"`--workdir` must be a folder that can be written: {error}.") from error
    return workdir


def show(found: dict[str, Any], report: Report) -> None:
    """The tables: drawn on a terminal, plain elsewhere."""
    for part, tables in TABLES.items():
        for table in tables(found.get(part, ())):
            if sys.stdout.isatty():
                report.show(table.rich())
            else:
                report.line(table.markdown() + "\n")


def save(found: dict[str, Any], arguments: Arguments, workdir: Path) -> None:
    """The picture, and with `--write` the tables in the document."""
    if found.get("op"):
        save_bars(workdir / "bench.png", found["op"], conditions(found))
    if arguments.write:
        write(found, Path(arguments.found))


def write(found: dict[str, Any], others: Path) -> None:
    """Puts the tables into the documents, and beside them the facts that they are made of."""
    blocks = {part: _block(part, found) for part in TABLES if part != "compiled" and found.get(part)}
    compiled = model.joined([*model.kept(documents.facts("compiled")), *model.kept(others)])
    if found.get("op"):
        documents.keep("op", found["op"])
    if found.get("compiled"):
        documents.keep("compiled", compiled)
        blocks |= _compiled_blocks(compiled, machine.sentence(found["machine"]))
    if found.get("op") or found.get("compiled"):
        blocks["summary"] = "\n\n".join(t.markdown() for t in overview_tables(compiled, _timed()))
    documents.write(blocks)


def conditions(found: dict[str, Any]) -> str:
    """The machine, and how often and in what memory what is timed was timed."""
    arguments = found["arguments"]
    return f"{machine.sentence(found['machine'])} {arguments['rounds']} rounds, {arguments['buffers']} buffers."


def _block(part: str, found: dict[str, Any]) -> str:
    how = conditions(found) if part in ("op", "step") else machine.sentence(found["machine"])
    return "\n\n".join([how, *(t.markdown() for t in TABLES[part](found[part]))])


def _timed() -> list[dict[str, Any]]:
    path = documents.facts("op")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _compiled_blocks(records: list[dict[str, Any]], words: str) -> dict[str, str]:
    """The ResNet-50 steps, and after them everything."""
    steps = [r for r in records if r["what"].startswith(STEP)]
    tables = {"model": fact_tables(steps), "compiled": [*ratio_tables(records), *fact_tables(records)]}
    return {name: "\n\n".join([words, *(t.markdown() for t in made)]) for name, made in tables.items() if made}
