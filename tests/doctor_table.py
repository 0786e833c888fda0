"""What `doctor` says of healthy models and of planted faults: `python -m tests.doctor_table` prints both tables.

`--write` puts them into the guide, and draws its picture. The limits of the doctor were set on the first five models,
and on five others with other seeds; those that are listed now were looked at once, afterwards.
"""

import re
import sys
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits

from bnjax import linen as bl
from bnjax import nnx as bx
from tests.kit.models_linen import LINEN
from tests.kit.models_nnx import NNX

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "doctor.md"
PICTURE = PAGE.with_suffix(".png")
STEPS, EXAMINED = 300, 10


# Data: functions of a generator and a number of examples.


def patterns(size, rng, n):
    """Ten patterns in noise."""
    means = np.random.default_rng(99).normal(size=(10, size, size, 3))
    label = rng.integers(10, size=n)
    return (means[label] + 2 * rng.normal(size=(n, size, size, 3))).astype(np.float32), label


@cache
def all_digits():
    data = load_digits()
    return (data.images / 8 - 1).astype(np.float32), data.target


def digits(repeat, rng, n, by_class=0.0):
    """Handwritten digits in three channels. Of a batch so many are of one class."""
    images, target = all_digits()
    at = rng.integers(len(target), size=n)
    same = np.flatnonzero(target == rng.integers(10))
    at[: int(by_class * n)] = rng.choice(same, int(by_class * n))
    image = np.kron(images[at], np.ones((1, repeat, repeat), np.float32))
    return np.repeat(image[..., None], 3, -1), target[at]


# Training, by nothing but Flax and optax


def loss_of(logits, label):
    logits = logits.reshape(len(label), -1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label % logits.shape[-1]).mean()


def optimizer():
    return optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))


def trained_linen(model, train, draw, batch, seed):
    """The variables after training with batches of that size."""
    rng, tx = np.random.default_rng(seed), optimizer()
    x, _ = draw(rng, batch)
    variables = jax.jit(nn.init(partial(train, batch=x), model))(jax.random.key(seed))
    params, stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)

    @jax.jit
    def step(params, stats, state, x, label, key):
        def loss(params):
            run = nn.apply(lambda m: train(m, batch=x), model, mutable=["batch_stats"])
            y, new = run({"params": params, "batch_stats": stats}, rngs={"dropout": key})
            return loss_of(y, label), new["batch_stats"]

        gradients, stats = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), stats, state

    for n in range(STEPS):
        params, stats, state = step(params, stats, state, *draw(rng, batch), jax.random.key(n))
    return {"params": params, "batch_stats": stats}


def trained_nnx(model, train, draw, batch, seed):
    """In place."""
    rng, tx = np.random.default_rng(seed), nnx.Optimizer(model, optimizer(), wrt=nnx.Param)

    @nnx.jit
    def step(model, tx, x, label):
        tx.update(model, nnx.grad(lambda m: loss_of(train(m, x), label))(model))

    model.train()
    for _ in range(STEPS):
        step(model, tx, *draw(rng, batch))
    return model


def batches_of(draw, batch, seed, **how):
    """Batches for the doctor; none of them was trained on."""
    rng = np.random.default_rng(10_000 + seed)
    return [draw(rng, batch, **how)[0] for _ in range(EXAMINED)]


# Healthy models


class Healthy(NamedTuple):
    """A model of the kit, or the one below, and how it is trained."""

    name: str
    api: str
    data: Any
    shown: str
    batch: int
    seed: int = 0


SET = [
    Healthy("resnet", "linen", partial(patterns, 16), "patterns", 32),
    *(
        Healthy(name, "linen", partial(patterns, 8), "patterns", 32)
        for name in ("densenet", "mobilenet", "lifted", "subclasses")
    ),
]
OTHERS = [
    Healthy("more", "nnx", partial(digits, 1), "digits", 8, 11),
    Healthy("patient", "linen", partial(digits, 1), "digits", 16, 12),
    Healthy("bottleneck", "linen", partial(digits, 2), "digits", 64, 13),
    Healthy("mobilenet", "nnx", partial(digits, 1), "digits", 128, 14),
    Healthy("own", "linen", partial(digits, 1), "digits", 256, 15),
]


def diagnosis_of(one):
    """Trained, and examined."""
    batches = batches_of(one.data, one.batch, one.seed)
    if one.api == "nnx":
        case = NNX[one.name]
        model = trained_nnx(case.make(nnx.Rngs(one.seed)), case.train, one.data, one.batch, one.seed)
        return bx.doctor(model, batches, call=case.call, tx=optimizer())
    if one.name == "patient":
        model, call, train = Patient(), partial(evaluate), partial(learn)
    else:
        case = LINEN[one.name]
        model, call, train = case.make(), case.call, case.train
    variables = trained_linen(model, train, one.data, one.batch, one.seed)
    return bl.doctor(model, variables, batches, call=call, tx=optimizer())


def healthy_line(one):
    """What is said of a healthy model, and how near its norms come to the limits."""
    found = diagnosis_of(one)
    alarms = [f for f in found.findings if f.severity != "note"]
    notes = Counter(f.code for f in found.findings if f.severity == "note")
    norms = [norm for norm in found.norms if norm.measured]
    off = max(float(np.median(np.abs(norm.mean_off))) for norm in norms)
    factor = max(float(np.exp(np.median(np.abs(norm.log_ratio)))) for norm in norms)
    wrong = ", ".join(f"{f.code} ({f.severity}) {f.path} {f.evidence}" for f in alarms) or "none"
    said = ", ".join(f"{code} {n}" if n > 1 else code for code, n in notes.items())
    return (
        f"| {one.name} ({one.api}) | {one.shown} | {one.batch} | {len(norms)} | {wrong} | {said} | {off:.2f} "
        f"| {factor:.2f} | {found.outputs_differ:.2f} |\n"
    )


# Planted faults, each at three strengths, in a model that is healthy without them


class Patient(nn.Module):
    """Three norms after three layers, the second of which may be changed."""

    momentum: float = 0.9
    biases: int = 0
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = x[..., 0].reshape(len(x), -1)
        for n in range(3):
            x = nn.Dense(64, use_bias=n < self.biases, name=f"layer{n}")(x)
            momentum = self.momentum if n == 1 else 0.9
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=momentum, name=f"norm{n}")(x))
            x = nn.Dropout(self.rate if n == 0 else 0.0, deterministic=not train)(x)
        return nn.Dense(10, name="head")(x)


def evaluate(model, batch):
    return model(batch)


def learn(model, batch):
    return model(batch, train=True)


@cache
def base(**options):
    return trained_linen(Patient(**options), learn, partial(digits, 1), 64, 0)


def changed(variables, path, change):
    """The variables with another leaf, or another branch."""
    first, *rest = path.split("/")
    return {**variables, first: changed(variables[first], "/".join(rest), change) if rest else change(variables[first])}


def again(model, variables):
    """With statistics of the training data."""
    batches = batches_of(partial(digits, 1), 256, 7)
    stats, _ = bl.recalibrate(model, variables, batches, call=evaluate, law="average", by_layer=True)
    return {**variables, "batch_stats": stats}


class Plant(NamedTuple):
    """What is examined: the model, its variables, its batches, and other arguments."""

    variables: Any
    options: dict = {}  # noqa: RUF012
    size: int = 64
    how: dict = {}  # noqa: RUF012
    arguments: dict = {}  # noqa: RUF012


def put(path, change, anew=False, **options):
    variables = changed(base(**options), path, change)
    return Plant(again(Patient(**options), variables) if anew else variables, options)


def first(t, part, value):
    """The first part of the features times `value`."""
    return t * jnp.where(jnp.arange(t.shape[-1]) < part * t.shape[-1], value, 1)


def fresh(n):
    start = {"mean": jnp.zeros(64), "var": jnp.ones(64)}
    return Plant(changed(base(), "batch_stats", lambda s: {**s, **{f"norm{i}": start for i in range(3 - n, 3)}}))


def far(times):
    shift = times * jnp.sqrt(base(biases=2)["batch_stats"]["norm1"]["var"])
    return put("params/layer1/bias", lambda t: t + shift, anew=True, biases=2)


def replicas(apart):
    stacked = jax.tree.map(lambda t: jnp.stack([t] * 4), base())
    std = jnp.sqrt(base()["batch_stats"]["norm1"]["var"])
    mean = lambda t: t + apart * std * jnp.arange(4.0)[:, None]  # noqa: E731
    return Plant(changed(stacked, "batch_stats/norm1/mean", mean), arguments={"replicated": True})


def by_class(share):
    draw = partial(digits, 1, by_class=share)
    return Plant(trained_linen(Patient(), learn, draw, 64, 0), how={"by_class": share})


def cast(what):
    dtype, *every = what.split(", ")
    return put("batch_stats" + ("" if every else "/norm1"), partial(jax.tree.map, lambda t: t.astype(dtype)))


def broken(where):
    paths = {"one": "batch_stats/norm1/var", "bias": "params/norm1/bias", "kernel": "params/layer1/kernel"}
    return put(paths[where], lambda t: t.at[..., 0].set(jnp.nan))


# By code: the strengths from weak to strong, what is planted, and where it must be found.
FAULTS = {
    "not-finite": (["one", "bias", "kernel"], broken, "norm1"),
    "replicas-differ": ([1e-4, 1e-3, 1e-1], replicas, "norm1"),
    "never-updated": ([1, 2, 3], fresh, "norm2"),
    "low-precision-state": (["float16", "bfloat16", "bfloat16, all"], cast, "norm1"),
    "momentum-torch": ([0.5, 0.3, 0.1], lambda m: Plant(base(momentum=m), {"momentum": m}), "norm1"),
    "few-values": ([15, 7, 2], lambda n: Plant(base(), size=n), "norm1"),
    "stale": (
        [1.1, 1.3, 2.0], lambda k: put("params/layer1/kernel", lambda t: t * k), "norm1"),
    "dead-channels": (
        [1 / 64, 1 / 4, 1 / 2], lambda p: put("params/layer1/kernel", lambda t: first(t, p, 0.0), anew=True), "norm1"),
    "epsilon-dominates": (
        [3e-2, 1e-2, 1e-3], lambda k: put("params/layer1/kernel", lambda t: t * k, anew=True), "norm1"),
    "mean-far-from-zero": ([30, 130, 1000], far, "norm1"),
    "dropout-before-norm": ([0.1, 0.25, 0.5], lambda r: Plant(base(rate=r), {"rate": r}), "norm1"),
    "scale-gone": (
        [1 / 64, 1 / 4, 1 / 2], lambda p: put("params/norm1/scale", lambda t: first(t, p, 0.0), anew=True), "norm1"),
    "decayed": (
        [1e-6, 1e-4, 1e-2], lambda w: Plant(base(), arguments={"tx": optax.adamw(1e-3, weight_decay=w)}), "norm1"),
    "bias-before-norm": ([1, 2, 3], lambda n: Plant(base(biases=n), {"biases": n}), "norm0"),
    "train-eval-gap": ([0.25, 0.5, 1.0], by_class, ""),
}  # fmt: skip


def planted_line(code):
    """What is found at each strength, and the least that is."""
    strengths, plant, path = FAULTS[code]
    cells, weakest = [], None
    for strength in strengths:
        one = plant(strength)
        batches = batches_of(partial(digits, 1), one.size, 0, **one.how)
        diagnosis = bl.doctor(Patient(**one.options), one.variables, batches, call=evaluate, **one.arguments)
        hit = next((f for f in diagnosis.findings if (f.path, f.code) == (path, code)), None)
        others = {f"{f.code} {f.path}" for f in diagnosis.findings if f.severity != "note" and f.code != code}
        weakest = strength if hit and weakest is None else weakest
        cells.append(
            f"{_short(strength)}: {hit.severity if hit else 'no'}" + (f" (and {', '.join(others)})" if others else "")
        )
    cells += [""] * (3 - len(cells))
    return f"| `{code}` | {' | '.join(cells)} | {_short(weakest)} |\n"


def _short(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw_picture():
    """The picture of the guide: a network with nine norms, of which one was never updated, and one is stale."""
    one = next(other for other in OTHERS if other.name == "bottleneck")
    case = LINEN[one.name]
    variables = trained_linen(case.make(), case.train, one.data, one.batch, one.seed)
    fresh = {"mean": jnp.zeros(16), "var": jnp.ones(16)}
    variables = changed(variables, "batch_stats/Bottleneck_0/norm_proj", lambda _: fresh)
    variables = changed(variables, "params/Bottleneck_1/Conv_1/kernel", lambda t: t * 2)
    bl.doctor(case.make(), variables, batches_of(one.data, one.batch, one.seed), call=case.call).plot(PICTURE)


HEALTHY = (
    "| model | data | batch | norms | warnings and errors | notes | mean off | variance, factor | outputs differ |\n"
    "| --- | --- | ---: | ---: | --- | --- | ---: | ---: | ---: |\n"
)
PLANTED = "| fault | weak | middle | strong | the least that is found |\n| --- | --- | --- | --- | --- |\n"
TABLES = {
    "healthy": (HEALTHY, healthy_line, [*SET, *OTHERS]),
    "planted": (PLANTED, planted_line, list(FAULTS)),
}


def main(argv):
    jax.config.update("jax_disable_most_optimizations", True)  # what is compiled runs a few hundred times
    chosen = [name for name in argv if not name.startswith("-")]
    if "picture" in chosen or ("--write" in argv and not chosen):
        draw_picture()
    for name, (head, line, rows) in TABLES.items():
        text = head
        print(head, end="")
        for row in rows:
            if not chosen or name in chosen or str(getattr(row, "name", row)) in chosen:
                text += line(row)
                print(text.splitlines()[-1], flush=True)
        if "--write" in argv and not chosen:
            place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
            PAGE.write_text(place.sub(lambda _, text=text: text, PAGE.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
