"""What the doctor found: a table, JSON, a picture."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import textwrap
from collections.abc import Sequence
from typing import Any

from bnjax._lifecycle.doctor.facts import Norm
from bnjax._lifecycle.doctor.finding import REMEDIES, SEVERITIES, Finding
from bnjax._lifecycle.report import Report, plain, said, table

WIDTH = 100  # of the text below the table
ALIKE = 4  # findings of one kind that are listed; how many more there are is said


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is wrong with the norms of a model. `str` is the table.

    Attributes:
      findings: `(path, code, severity, evidence, remedy)`, the worst first, then in the order of the calls.
      report: one row for each norm, and each leaf of the running state: what was measured, or why not.
      outputs_differ: how much the outputs by the running statistics differ from those by the batch, in standard
        deviations of the outputs; none where no norm has a state.
      norms: the facts that were judged.
    """

    findings: tuple[Finding, ...]
    report: Report
    outputs_differ: float | None = None
    norms: tuple[Norm, ...] = dataclasses.field(default=(), repr=False)

    def table(self) -> str:
        """The findings, and below them what to do about each kind."""
        unmeasured = [row for row in self.report if not row.done and row.kind != "leaf"]
        parts = [_rows(self.findings)] if self.findings else ["No findings."]
        remedies = {f.code: f.remedy for f in self.findings}
        parts += [textwrap.fill(f"{code}: {remedy}", WIDTH) for code, remedy in remedies.items()]
        if self.outputs_differ is not None and math.isfinite(self.outputs_differ):
            parts.append(
                f"Outputs by the running statistics and by those of the batch differ by {self.outputs_differ:.2g} of "
                "their standard deviation."
            )
        parts += [f"Not measured: {row.path or '(root)'} ({row.kind}): {row.reason}." for row in unmeasured]
        return "\n\n".join(parts)

    def to_json(self) -> str:
        """The findings and the rows of the report, as a JSON object."""
        return json.dumps(
            {
                "findings": [f._asdict() | {"evidence": plain(f.evidence)} for f in self.findings],
                "outputs_differ": plain(self.outputs_differ),
                "norms": json.loads(self.report.to_json()),
            }
        )

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the running statistics against those of the batches, norm by norm, and marks the findings.

        Args:
          path: of the file, whose ending says what it is: `.png`, `.svg` or `.pdf`.

        Raises:
          ValueError: another ending; no norm was measured.
          ImportError: matplotlib is not there.
        """
        from bnjax._lifecycle.doctor.picture import save

        save(self.norms, self.findings, path)

    def __str__(self) -> str:
        return self.table()


def ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The worst first, then by kind, then in the order of the calls."""
    codes = list(REMEDIES)
    return tuple(sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), codes.index(f.code))))


def _rows(findings: Sequence[Finding]) -> str:
    rows: list[tuple[str, ...]] = [("severity", "path", "code", "evidence")]
    alike: dict[tuple[str, str], list[Finding]] = {}
    for f in findings:
        alike.setdefault((f.severity, f.code), []).append(f)
    for (severity, code), group in alike.items():
        rows += [(severity, f.path or "(root)", code, said("", f.evidence)) for f in group[:ALIKE]]
        if len(group) > ALIKE:
            rows.append((severity, f"and {len(group) - ALIKE} more", code, ""))
    return table(rows)


def evidence_of(norm: Norm) -> dict[str, Any]:
    """The figures of a norm in the report."""
    return {"batches": len(norm.batches), "calls": norm.batches.calls, "values": norm.batches.values}
