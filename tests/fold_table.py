"""What `fold` does to the models of the kit: `python -m tests.fold_table` prints it, `--write` puts it in the guide."""

import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from bnjax import linen as bl
from bnjax.linen.lifecycle import Row
from tests.kit import models_linen
from tests.kit.cases import Case, as_if_trained, values
from tests.kit.convnets_linen import Basic, Bottleneck, ResNet

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "fold.md"
PLACE = re.compile(r"(?<=<!-- fold -->\n).*?(?=<!-- /fold -->)", re.DOTALL)
HEAD = "| model | folded | left | why | error |\n| --- | ---: | ---: | --- | ---: |\n"
RESNETS = {"ResNet-18": (Basic, (2, 2, 2, 2)), "ResNet-50": (Bottleneck, (3, 4, 6, 3))}


def resnet(block, stages):
    """A case of Flax's ResNet, with few channels and small images."""
    make = partial(ResNet, block, 4, stages)
    evaluates = lambda model, x: model(x, train=False)  # noqa: E731
    return Case(make, values(32, 32, 3), evaluates, evaluates)


def outcomes():
    """The name and the report of each model; a model of which nothing can be folded has an error in its place."""
    for name, (block, stages) in RESNETS.items():
        case = resnet(block, stages)
        variables = as_if_trained(jax.jit(nn.init(case.call, case.make()))(jax.random.key(0), case.example))
        yield name, bl.fold(case.make(), variables, case.example, call=case.call)[1]
    for name, case in models_linen.LINEN.items():
        try:
            yield name, bl.fold(case.make(), models_linen.variables(name), case.example, call=case.call)[1]
        except ValueError as error:
            found = re.findall(r"^  (\S+) \((\w+)\): (.*)$", str(error), re.MULTILINE)
            yield name, [Row(path, kind, False, reason) for path, kind, reason in found]


def line(name, rows):
    """One model's line: of norms alone, since a leaf beside them is none."""
    norms = [row for row in rows if row.kind != "leaf"]
    reasons = Counter(re.sub(r"'[^']*'", "…", row.reason) for row in norms if not row.done)
    why = "; ".join(f"{reason} ({n})" if n > 1 else reason for reason, n in reasons.items())
    errors = [row.evidence["error"] for row in norms if row.done]
    done = len(errors)
    return f"| {name} | {done} | {len(norms) - done} | {why} | {f'{np.max(errors):.0e}' if errors else ''} |\n"


def main(write):
    table = HEAD
    for name, rows in outcomes():
        table += line(name, rows)
        print(table.splitlines()[-1], flush=True)
    if write:
        PAGE.write_text(PLACE.sub(lambda _: table, PAGE.read_text()))


if __name__ == "__main__":
    main("--write" in sys.argv[1:])
