"""What each verb does to each model of the kit: `python -m tests.lifecycle_table` prints it, as a table in Markdown.

A number is the worst error against Flax or float64 numpy of what was done. With words in it, `pytest` of
`tests/lifecycle` says more. `python -m tests.lifecycle_table resnet odd` prints these models alone.
"""

import os
import sys
from functools import partial

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import numpy as np
import optax

from bnjax.linen import adapt, freeze, norm_params_mask, recalibrate, summary, swap, tent, upgrade
from tests.kit import models_linen, population
from tests.kit.models_linen import LINEN


def said(report):
    """How many norms are done, and why others are not."""
    rows = [row for row in report if row.kind != "leaf"]
    whys = sorted({row.reason for row in rows if not row.done})
    return f"{sum(row.done for row in rows)} of {len(rows)}" + "".join(f"; {why}" for why in whys)


def difference(got, want):
    """The worst, as a part of the largest entry."""
    pairs = [*zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)]
    pairs = [tuple(np.asarray(t, float) for t in pair) for pair in pairs]
    return max((float(abs(a - b).max() / (abs(b).max() + 1e-9)) for a, b in pairs), default=0.0)


def statistics(name, by_layer, verb=recalibrate):
    case, variables, batches = LINEN[name], models_linen.variables(name), LINEN[name].batches(3, 4, 2)
    new, report = verb(
        case.make(), variables, batches, call=case.call, **({} if verb is adapt else {"by_layer": by_layer})
    )
    measured = population.by_layer if by_layer else population.one_pass
    if verb is adapt or ("repeated" in case.flags and by_layer):
        return said(report)  # no formula
    want, got = measured(population.linen(name), batches), population.pairs_of({"batch_stats": new})
    errors = [abs(got[p].mean - w.mean) / np.sqrt(w.var) for p, w in want.items()]
    errors += [abs(got[p].var / w.var - 1) for p, w in want.items()]
    return f"{said(report)}; {max(e.max() for e in errors):.0e}"


def in_context(name, context, like=None):
    """The steps of evaluation and training inside, against those of Flax by `like`."""
    case, variables = LINEN[name], models_linen.variables(name)
    trains = "broadcast" not in case.flags
    with context() as report:
        y = models_linen.evaluate(name, variables, case.example)
        trained = models_linen.train(name, variables, case.example) if trains else None
    return f"{said(report)}" + (f"; {like(name, y, trained):.0e}" if like else "")


def as_flax(name, y, trained):
    case, variables = LINEN[name], models_linen.variables(name)
    errors = [difference(y, models_linen.evaluate(name, variables, case.example))]
    if trained is not None:
        errors.append(difference(trained, models_linen.train(name, variables, case.example)))
    return max(errors)


def adapted(name):
    case, variables = LINEN[name], models_linen.variables(name)
    opt_state, step = tent(case.make(), variables, optax.sgd(1e-3), call=case.call)
    _, params, _ = step(variables["params"], opt_state, case.example)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(variables["params"]), strict=True)
    moved = [bool((np.asarray(a) != np.asarray(b)).any()) for a, b in pairs]
    own = jax.tree.leaves(norm_params_mask(variables["params"]))
    assert not any(m and not o for m, o in zip(moved, own, strict=True)), "another parameter moved"
    return f"{sum(moved)} of {sum(own)} parameters of norms moved, no other"


def table_of(name):
    case = LINEN[name]
    return f"{len(summary(case.make(), models_linen.variables(name), case.example, call=case.call).rows)} norms"


VERBS = {
    "recalibrate": partial(statistics, by_layer=False),
    "by_layer": partial(statistics, by_layer=True),
    "adapt": partial(statistics, by_layer=False, verb=adapt),
    "upgrade": partial(in_context, context=upgrade, like=as_flax),
    "swap": partial(in_context, context=partial(swap, "layer")),
    "freeze": partial(in_context, context=partial(freeze, parameters=True)),
    "tent": adapted,
    "summary": table_of,
}


def tried(verb, name):
    """What came of it; an error of ours by its first sentence and the reasons in it."""
    try:
        return VERBS[verb](name)
    except ValueError as error:
        lines = str(error).splitlines()
        reasons = sorted({line.split(": ", 1)[-1].strip() for line in lines[2:]}) if "It found:" in lines[1:] else []
        return "raises: " + "; ".join(reasons or [lines[0][:120]])


def main(*names):
    print("| model | " + " | ".join(VERBS) + " |\n|" + " --- |" * (len(VERBS) + 1))
    for name in names or LINEN:
        print(f"| {name} | " + " | ".join(tried(verb, name) for verb in VERBS) + " |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
