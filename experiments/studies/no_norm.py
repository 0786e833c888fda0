"""Can deep networks do without a norm? Starts, scaled weights and element-wise functions in its place."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array

from bnjax import linen as bnn
from experiments.data import CLASSES
from experiments.lab.fitting import Examples, accuracy, digits, fit
from experiments.lab.rates import best, metric, of_all
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study

NORMS = ("batch", "layer", "dyt", "derf")  # in front of each relu
WAYS = ("none", *NORMS, "zero", "fixup", "scaled_ws")
BLOCKS = (4, 16)
RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of SGD with momentum
WIDTH, BATCH, STEPS, MOMENTUM = 32, 32, 300, 0.9
PART = 0.9  # of the best accuracy: with the largest rate that reaches it, training is stable
ALPHA = 0.2  # of what a block adds, with scaled weights
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))  # relu of a normal number has a variance of one then


class Block(nn.Module):
    """Twice relu and a dense layer, beside a shortcut; `way` is one of `WAYS`."""

    way: str
    blocks: int
    train: bool

    @nn.compact
    def __call__(self, x: Array, variance: Array) -> tuple[Array, None]:
        y = x / jnp.sqrt(variance) if self.way == "scaled_ws" else x
        for i in range(2):
            y = active(self.way, self.train, f"norm{i}")(self.shifted(y, f"before_relu{i}"))
            y = self.dense(last=i == 1)(self.shifted(y, f"before_dense{i}"))
        if self.way in ("zero", "fixup"):
            y = y * self.param("gain", nn.initializers.constant(0.0 if self.way == "zero" else 1.0), ())
        return x + (ALPHA * y if self.way == "scaled_ws" else y), None

    def dense(self, last: bool) -> Any:
        """With He's start; Fixup's is smaller by the root of the number of blocks, and zero at the end of a block."""
        if self.way == "scaled_ws":
            return bnn.ScaledWeightStandardization(nn.Dense(WIDTH))
        start = nn.initializers.he_normal()
        if self.way == "fixup":
            scaled = nn.initializers.variance_scaling(2 / self.blocks, "fan_in", "normal")
            start = nn.initializers.zeros if last else scaled
        return nn.Dense(WIDTH, kernel_init=start, use_bias=self.way != "fixup")

    def shifted(self, y: Array, name: str) -> Array:
        """Fixup's biases, each one number."""
        return y + self.param(name, nn.initializers.zeros, ()) if self.way == "fixup" else y


def active(way: str, train: bool, name: str) -> Any:
    """The norm, if there is one, and relu."""
    if way not in NORMS:
        return lambda x: nn.relu(x) * (RELU_GAIN if way == "scaled_ws" else 1.0)
    state = {"use_running_average": not train, "momentum": 0.9} if way == "batch" else {}
    norm = bnn.make_norm(way, **state)(name=name)  # type: ignore[arg-type]
    return lambda x: nn.relu(norm(x))


class Residual(nn.Module):
    """A dense layer, equal blocks as one that is scanned, the norm and relu, and a head."""

    way: str
    blocks: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.Dense(WIDTH, name="stem")(x)
        blocks = nn.scan(
            Block, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=self.blocks
        )
        variances = 1 + ALPHA**2 * jnp.arange(self.blocks)  # of what comes into each block, with scaled weights
        x, _ = blocks(self.way, self.blocks, train, name="blocks")(x, variances)
        start = nn.initializers.zeros if self.way == "fixup" else nn.initializers.lecun_normal()
        return nn.Dense(CLASSES, kernel_init=start, name="head")(active(self.way, train, "norm")(x))


def cells(quick: bool) -> list[Settings]:
    """Every way, in shallow and in deep networks."""
    ways, depths = (("none", "batch", "zero"), BLOCKS[:1]) if quick else (WAYS, BLOCKS)
    return [{"norm": way, "blocks": blocks} for blocks in depths for way in ways]


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """All seeds of a cell as one program, and all learning rates."""
    net = Residual(settings["norm"], settings["blocks"])
    accuracies = of_all(partial(trained, net, *digits(flat=True)), seeds, RATES)
    for i, seed in enumerate(seeds):
        yield from (Measured(seed, metric(rate), STEPS, float(accuracies[j, i])) for j, rate in enumerate(RATES))


def trained(net: Residual, train: Examples, held_out: Examples, seed: Array, rate: Array) -> Array:
    """The accuracy on the held-out digits; a network with a number that is none finds nothing."""
    optimizer = optax.sgd(rate, MOMENTUM)
    variables, _ = fit(net, train, jax.random.key(seed), optimizer, steps=STEPS, batch=BATCH)
    return accuracy(net, variables, held_out)


# Figures


def _settings(way: str, blocks: int = BLOCKS[-1]) -> Settings:
    return {"norm": way, "blocks": blocks}


def _best(evidence: Evidence, way: str, blocks: int = BLOCKS[-1]) -> np.ndarray:
    return best(evidence, RATES, _settings(way, blocks))


def largest_rates(evidence: Evidence, way: str, blocks: int = BLOCKS[-1]) -> np.ndarray:
    """For each seed the logarithm, base ten, of the largest rate whose accuracy is at least `PART` of the best one."""
    found = np.stack([evidence.values(metric(rate), _settings(way, blocks)) for rate in RATES])
    stable = found >= PART * found.max(0)
    return np.log10([max(rate for rate, ok in zip(RATES, of_seed, strict=True) if ok) for of_seed in stable.T])


def _rates(evidence: Evidence) -> Mapping[str, Interval]:
    """In the shallow networks: in deep ones no rate trains a network without a norm."""
    logs = {way: largest_rates(evidence, way, BLOCKS[0]) for way in ("none", "batch")}
    rates = {way: interval(10 ** values.mean(keepdims=True)) for way, values in logs.items()}
    return {**rates, "more": interval(logs["batch"] - logs["none"]).power()}


def _beside(other: str, *ways: str) -> Any:
    """The accuracies, and how much more each is than that of `other`, in points."""

    def figures(evidence: Evidence) -> Mapping[str, Interval]:
        own = {way: 100 * _best(evidence, way) for way in (other, *ways)}
        more = {f"{way}_more": interval(own[way] - own[other]) for way in ways}
        return {**{way: interval(values) for way, values in own.items()}, **more}

    return figures


CLAIMS = (
    Claim(
        "a norm is worth something",
        f"In {BLOCKS[-1]} blocks, each at its best of the rates, batch norm is worth {{batch_more:.1f}} points of "
        "accuracy over no norm and an ordinary start: {batch:.1f} and {none:.1f} %.",
        _beside("none", "batch"),
        lambda f: f["batch_more"].above(2.0),
        "the network without a norm came within two points",
        "De and Smith: batch norm keeps what a block adds small at the start, so that deep networks can be trained "
        "(arXiv:2002.10444).",
    ),
    Claim(
        "larger rates",
        f"In {BLOCKS[0]} blocks, where both can be trained, a larger learning rate is stable with batch norm: "
        "{batch.mean:.2g} in the mean, beside {none.mean:.2g} without a norm, {more:.1f} times as much.",
        _rates,
        lambda f: f["more"].above(1.0),
        "the largest rate were as large without a norm",
    ),
    Claim(
        "a start in its place",
        "A start in the place of the norm, or scaled weights, come within two points of batch norm's {batch:.1f} %: "
        "blocks that begin at zero {zero:.1f} ({zero_more:.1f}), Fixup {fixup:.1f} ({fixup_more:.1f}), scaled weight "
        "standardization {scaled_ws:.1f} ({scaled_ws_more:.1f}).",
        _beside("batch", "zero", "fixup", "scaled_ws"),
        lambda f: all_of([f[f"{way}_more"].above(-2.0) for way in ("zero", "fixup", "scaled_ws")]),
        "one of the three were two points below batch norm",
        "Fixup trains residual networks of 10,000 layers without a norm (arXiv:1901.09321); networks with scaled "
        "weights reach those with batch norm on ImageNet (arXiv:2101.08692).",
    ),
    Claim(
        "functions in its place",
        "Element-wise functions come within two points of layer norm's {layer:.1f} %: dynamic tanh {dyt:.1f} "
        "({dyt_more:.1f}), Derf {derf:.1f} ({derf_more:.1f}). No norm does not: {none:.1f} ({none_more:.1f}).",
        _beside("layer", "dyt", "derf", "none"),
        lambda f: all_of([*(f[f"{way}_more"].above(-2.0) for way in ("dyt", "derf")), f["none_more"].below(-2.0)]),
        "one of the two functions were two points below layer norm, or no norm were not",
        "DyT and Derf match layer norm in transformers (arXiv:2503.10622, arXiv:2512.10938).",
    ),
)


# Pictures


def pictures(evidence: Evidence) -> list[Chart]:
    found = []
    for blocks in BLOCKS:
        rows = _rows(evidence, blocks)
        if rows:
            found.append(
                Chart(
                    f"{blocks} blocks",
                    "Accuracy on the held-out digits by learning rate. A line is the mean over the seeds, with its "
                    "95 % interval. Click a way in the legend to fade the others.",
                    charts.lines(rows, x="rate", y="accuracy", colour="norm", order=WAYS, log_x=True),
                    charts.table(rows, x="rate", y="accuracy", line="norm", title="Accuracy, mean and 95 % interval"),
                )
            )
    return found[::-1]


def _rows(evidence: Evidence, blocks: int) -> list[dict[str, Any]]:
    found = []
    for way in WAYS:
        for rate in RATES:
            if evidence.select(_settings(way, blocks)):
                value = interval(evidence.values(metric(rate), _settings(way, blocks)))
                found.append({"norm": way, "rate": rate, **value.named("accuracy")})
    return found


STUDY = Study(
    name="no_norm",
    title="No norm at all",
    question="Can deep networks do without a norm?",
    protocol=(
        f"Residual networks of {' and '.join(map(str, BLOCKS))} blocks on the 8 by 8 digits. A block is twice a relu "
        f"and a dense layer of width {WIDTH}, beside a shortcut; a norm stands in front of each relu. {STEPS} steps of "
        f"SGD with momentum {MOMENTUM}, {BATCH} examples a batch, at one learning rate. Each way has, of "
        f"{', '.join(f'{r:g}' for r in RATES)}, the one with the best mean accuracy on the held-out digits. The "
        f"largest rate is the largest one whose accuracy is at least {PART} of the best.\n\n"
        "Without a norm: `none` has He's start; `zero` multiplies what a block adds by a number that starts at zero; "
        "`fixup` is Fixup (arXiv:1901.09321); `scaled_ws` standardizes and scales the weights, scales relu, and "
        "follows the variance from block to block (arXiv:2101.08692). `dyt` and `derf` are functions of a number."
    ),
    cells=cells,
    run=run,
    seeds=10,
    constants={"rates": RATES, "width": WIDTH, "batch": BATCH, "steps": STEPS, "momentum": MOMENTUM, "alpha": ALPHA},
    claims=CLAIMS,
    charts=pictures,
)
