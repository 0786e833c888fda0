"""Do norms keep gradients from vanishing, and from exploding? Deep networks of equal layers on the digits."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.lab.deep import Deep, Layer
from experiments.lab.fitting import Examples, Step, accuracy, digits, fit
from experiments.lab.rates import best, metric, of_all
from experiments.results import charts
from experiments.results.claims import Claim, Interval, Verdict, all_of, interval, paired
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study

NORMS = ("none", "batch", "layer", "rms", "dyt")
DEPTHS = (5, 10, 20, 30, 50)
RATES = (0.002, 0.01, 0.05, 0.2)
STEPS, EVERY, BATCH, MOMENTUM = 400, 40, 64, 0.9
DEEP = 30  # layers of the networks that claims and maps are about
SIZES = (4, 8, 16, 32, 64, 128, 256)  # of batches, for the growth at the start
OTHER_STARTS = ("he", "orthogonal")  # beside LeCun's
WIDE = 256
THEORY = math.sqrt(math.pi / (math.pi - 1))
FLOOR = 1e-38  # what float32 can hold: a smaller gradient is zero


def cells(quick: bool) -> list[Settings]:
    """Training by depth and norm; with tanh and other starts at two depths; and the start alone, by batch size."""
    depths, norms = ((10, DEEP), ("none", "batch", "layer")) if quick else (DEPTHS, NORMS)
    found = [_cell(depth, norm) for depth in depths for norm in norms]
    if not quick:
        found += [_cell(depth, norm, activation="tanh") for depth in (10, DEEP) for norm in norms]
        found += [_cell(DEEP, n, start=s) for s in OTHER_STARTS for n in ("none", "batch", "layer")]
    sizes = (16, 128) if quick else SIZES
    return [*found, *({"part": "growth", "norm": n, "batch": b} for b in sizes for n in ("batch", "layer"))]


def _cell(depth: int, norm: str, activation: str = "sigmoid", start: str = "lecun") -> Settings:
    return {"part": "training", "depth": depth, "norm": norm, "activation": activation, "start": start}


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """All seeds of a cell as one program, and all learning rates."""
    if settings["part"] == "growth":
        of_seeds = jax.jit(jax.vmap(partial(growth, settings["norm"], settings["batch"])))(jnp.asarray(seeds))
        yield from (Measured(seed, "growth", 0, float(g)) for seed, g in zip(seeds, of_seeds, strict=True))
        return
    own = {name: settings[name] for name in ("norm", "depth", "activation", "start")}
    accuracies, norms = of_all(partial(trained, Deep(**own), *digits(flat=True)), seeds, RATES)
    for i, seed in enumerate(seeds):
        yield from (Measured(seed, metric(rate), STEPS, float(accuracies[j, i])) for j, rate in enumerate(RATES))
        first, last = norms[0, i, 0, 0], norms[0, i, 0, -1]  # before the first step all rates are alike
        yield Measured(seed, "log10 of first / last", 0, float(np.log10(max(first, FLOOR) / max(last, FLOOR))))
    if settings["depth"] == DEEP and settings["start"] == "lecun":
        best = int(accuracies.mean(1).argmax())
        for step, layers in zip(range(0, STEPS, EVERY), norms[best, 0], strict=True):
            for layer, size in enumerate(layers, 1):
                yield Measured(seeds[0], f"log10 of gradient, layer {layer}", step, float(np.log10(max(size, FLOOR))))


def trained(net: Deep, train: Examples, held_out: Examples, seed: Array, rate: Array) -> tuple[Array, Array]:
    """The accuracy on the held-out digits, and the norms of the kernels' gradients: (STEPS // EVERY, layers)."""
    variables, sizes = fit(
        net, train, jax.random.key(seed), optax.sgd(rate, MOMENTUM),
        steps=STEPS, batch=BATCH, every=EVERY, watch=sizes_of_gradients,
    )  # fmt: skip
    return accuracy(net, variables, held_out), sizes


def sizes_of_gradients(step: Step) -> Array:
    return jnp.sqrt((step.gradients["layers"]["dense"]["kernel"] ** 2).sum((1, 2)))


def growth(norm: str, batch: int, seed: Array) -> Array:
    """By which factor the gradient to a layer's input grows a layer, towards the first, in a network of relu."""
    net = Deep(norm, DEEP, "relu")
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (batch, WIDE))
    params = net.init(keys[1], x[:2], True)["params"]["layers"]
    layer = Layer(norm, "relu", "lecun", True)

    def forward(x: Array, own: Any) -> tuple[Array, Array]:
        (y, _), _ = layer.apply({"params": own}, x, None, mutable=["batch_stats"])
        return y, x

    top, inputs = jax.lax.scan(forward, x, params)

    def backward(g: Array, own_and_x: Any) -> tuple[Array, Array]:
        own, x = own_and_x
        (g,) = jax.vjp(lambda x: forward(x, own)[0], x)[1](g)
        return g, jnp.log(jnp.linalg.norm(g))

    _, sizes = jax.lax.scan(backward, jax.random.normal(keys[2], top.shape), (params, inputs), reverse=True)
    layers = jnp.arange(DEEP) - (DEEP - 1) / 2
    return jnp.exp(-(layers * (sizes - sizes.mean())).sum() / (layers**2).sum())


# Figures


def _best(evidence: Evidence, settings: Settings) -> np.ndarray:
    return best(evidence, RATES, settings)


def _accuracies(evidence: Evidence, names: Sequence[str], depth: int = DEEP, **more: str) -> dict[str, Interval]:
    return {name: interval(_best(evidence, {**_cell(depth, name), **more})) for name in names}


def _ratios(evidence: Evidence) -> dict[str, Interval]:
    metric = "log10 of first / last"
    return {name: interval(evidence.values(metric, _cell(DEEP, name))) for name in ("none", "batch", "layer")}


def _growths(evidence: Evidence) -> dict[str, Any]:
    large, small = ({"part": "growth", "norm": "batch", "batch": size} for size in (128, 16))
    layer = {"part": "growth", "norm": "layer", "batch": 128}
    return {
        "theory": THEORY,
        "batch": interval(evidence.values("growth", large)),
        "layer": interval(evidence.values("growth", layer)),
        "more": paired(evidence, "growth", small, large),
    }


def _starts(evidence: Evidence) -> dict[str, Interval]:
    return {s: interval(_best(evidence, _cell(DEEP, "none", start=s))) for s in OTHER_STARTS} | {
        f"{s}_batch": interval(_best(evidence, _cell(DEEP, "batch", start=s))) for s in OTHER_STARTS
    }


def _inside(value: Interval, low: float, high: float) -> Verdict:
    return all_of([value.above(low), value.below(high)])


CLAIMS = (
    Claim(
        "a deep sigmoid network",
        "A sigmoid network of 30 layers learns the digits with batch norm (accuracy {batch:.2f}), and does not learn "
        "without a norm ({none:.2f}).",
        lambda e: _accuracies(e, ("none", "batch")),
        lambda f: all_of([f["batch"].above(0.8), f["none"].below(0.2)]),
        "batch norm stayed below 0.8, or the network without a norm came above 0.2",
        "Ioffe and Szegedy trained a sigmoid Inception to 69.8 %, which without batch norm stayed at chance "
        "(arXiv:1502.03167, section 4.2.2).",
    ),
    Claim(
        "norms of one example",
        "Layer norm ({layer:.2f}), RMS norm ({rms:.2f}) and dynamic tanh ({dyt:.2f}) do not make it learn.",
        lambda e: _accuracies(e, ("layer", "rms", "dyt")),
        lambda f: all_of([f[name].below(0.3) for name in ("layer", "rms", "dyt")]),
        "one of them came above 0.3",
    ),
    Claim(
        "the start",
        "The reason is there before the first step: without batch norm the gradient of the first layer vanishes. "
        "Found: it is 10 to the power of {none:.1f} times that of the last layer, or less, without a norm (smaller "
        "gradients are counted as 1e-38, where float32 loses its digits), {layer:.1f} with layer norm, {batch:.1f} "
        "with batch norm.",
        _ratios,
        lambda f: all_of([f["none"].below(-5), f["layer"].below(-5), _inside(f["batch"], -1, 1)]),
        "the power were above -5 without a norm or with layer norm, or not within -1 and 1 with batch norm",
    ),
    Claim(
        "starts for the weights",
        "Another start for the weights does not replace the norm. Without a norm: {he:.2f} (He), "
        "{orthogonal:.2f} (orthogonal); with batch norm {he_batch:.2f} and {orthogonal_batch:.2f}.",
        _starts,
        lambda f: all_of([f[s].below(0.2) for s in OTHER_STARTS] + [f[f"{s}_batch"].above(0.8) for s in OTHER_STARTS]),
        "a network without a norm came above 0.2, or one with batch norm stayed below 0.8",
    ),
    Claim(
        "another activation",
        "It is the sigmoid: with tanh and 10 layers the network learns without a norm ({none:.2f}), with batch norm "
        "({batch:.2f}) and with layer norm ({layer:.2f}). With dynamic tanh in front of tanh it does not ({dyt:.2f}).",
        lambda e: _accuracies(e, ("none", "batch", "layer", "dyt"), 10, activation="tanh"),
        lambda f: all_of([*(f[n].above(0.9) for n in ("none", "batch", "layer")), f["dyt"].below(0.9)]),
        "one of the first three stayed below 0.9, or dynamic tanh came above it",
    ),
    Claim(
        "explosion",
        "In a network of relu, batch norm lets gradients grow. Found: before training, in 30 layers with 128 examples, "
        "by a factor of {batch:.3f} a layer towards the first (theory: {theory:.3f}); with layer norm the factor is "
        "{layer:.3f}.",
        _growths,
        lambda f: all_of([_inside(f["batch"], 0.97 * THEORY, 1.03 * THEORY), f["layer"].below(1.05)]),
        "the growth were more than 3 % off the theory, or that of layer norm above 1.05",
        "Yang et al. derive the square root of π / (π - 1) for infinite width and batch (arXiv:1902.08129).",
    ),
    Claim(
        "small batches",
        "With batch norm gradients grow faster where batches are small. Found: with 16 examples the factor a layer is "
        "{more:.3f} larger than with 128.",
        _growths,
        lambda f: f["more"].above(0.01),
        "the difference were below 0.01",
    ),
)


# Pictures


def pictures(evidence: Evidence) -> list[Chart]:
    found = []
    if rows := _by_depth(evidence):
        found.append(
            Chart(
                "How deep can it be?",
                "Accuracy on the held-out digits after training, sigmoid networks. A line is the mean over the seeds, "
                "with its 95 % interval. Click a norm in the legend to fade the others.",
                charts.lines(rows, x="layers", y="accuracy", colour="norm", order=NORMS),
                charts.table(rows, x="layers", y="accuracy", line="norm", title="Accuracy, mean and 95 % interval"),
            )
        )
    if rows := _map(evidence):
        found.append(
            Chart(
                "Where are the gradients?",
                f"The size of the gradient of each layer's weights, as a power of ten, in {DEEP} layers, by steps of "
                "training (move the slider). Dark is small: nothing is learned there.",
                charts.heat(rows, x="activation", y="layer", value="log10", facet="norm", order=NORMS, slider="step"),
            )
        )
    if rows := _by_size(evidence):
        found.append(
            Chart(
                "Growth at the start",
                "By which factor gradients grow a layer, towards the first layer, before training; 1 is neither growth "
                "nor decay.",
                charts.lines(rows, x="examples", y="growth", colour="norm", order=NORMS[1:3], log_x=True),
                charts.table(
                    rows, x="examples", y="growth", line="norm", title="Growth a layer, mean and 95 % interval"
                ),
            )
        )
    return found


def _by_depth(evidence: Evidence) -> list[dict[str, Any]]:
    found = []
    for norm in NORMS:
        for depth in DEPTHS:
            if evidence.select(_cell(depth, norm)):
                value = interval(_best(evidence, _cell(depth, norm)))
                found.append({"norm": norm, "layers": depth, **value.named("accuracy")})
    return found


def _by_size(evidence: Evidence) -> list[dict[str, Any]]:
    found = []
    for norm in ("batch", "layer"):
        for size in SIZES:
            settings = {"part": "growth", "norm": norm, "batch": size}
            if evidence.select(settings):
                value = interval(evidence.values("growth", settings))
                found.append({"norm": norm, "examples": size, **value.named("growth")})
    return found


def _map(evidence: Evidence) -> list[dict[str, Any]]:
    prefix = "log10 of gradient, layer "
    found: list[dict[str, Any]] = []
    for activation in ("sigmoid", "tanh"):
        for norm in NORMS:
            rows = evidence.select(_cell(DEEP, norm, activation=activation))
            found += [
                {
                    "norm": norm, "activation": activation, "layer": int(row.metric.removeprefix(prefix)),
                    "step": row.step, "log10": round(row.value, 1),
                }
                for row in rows if row.metric.startswith(prefix)
            ]  # fmt: skip
    return found


CONSTANTS = {
    "rates": RATES, "steps": STEPS, "every": EVERY, "batch": BATCH, "momentum": MOMENTUM, "wide": WIDE, "deep": DEEP,
    "width": 64,
}  # fmt: skip

STUDY = Study(
    name="gradients",
    title="Vanishing and exploding gradients",
    question="Do norms keep gradients from vanishing and exploding, so that deep networks learn?",
    protocol=(
        "Networks of equal layers (a dense layer of width 64, a norm, an activation) and a head, on the 8 by 8 digits: "
        f"{STEPS} steps of SGD with momentum {MOMENTUM}, {BATCH} examples a batch. Of the learning rates "
        f"{', '.join(f'{r:g}' for r in RATES)} each setting has the one with the best mean accuracy on the held-out "
        "digits. The weights start as LeCun's, if nothing else is said.\n\n"
        f"The growth at the start is measured in {DEEP} layers of width {WIDE} with relu, on normal input, with a "
        "normal gradient at the top: the slope of the logarithm of the gradient's norm over the layers."
    ),
    cells=cells,
    run=run,
    seeds=5,
    constants=CONSTANTS,
    claims=CLAIMS,
    charts=pictures,
)
