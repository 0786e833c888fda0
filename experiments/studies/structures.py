"""Do norms work in other structures? A config for each architecture of the zoo, with three norms."""

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.report import reporting
from experiments.config import Config, with_norm
from experiments.data import load_data, steps_per_epoch
from experiments.results import charts
from experiments.results.claims import Claim, Interval, Verdict, interval
from experiments.results.config_page import digest, marked
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study
from experiments.results.tables import Table
from experiments.training.run import program_of, train

IMAGES = {
    "digits_cnn": "Article's CNN", "alexnet_digits": "AlexNet", "vgg_digits": "VGG", "resnet_digits": "ResNet",
    "bn_inception_digits": "BN-Inception", "densenet_digits": "DenseNet", "xception_digits": "Xception",
}  # fmt: skip
SEQUENCES = {
    "lstm_digits": "LSTM", "gru_digits": "GRU", "transformer_reverse": "Transformer", "bert_text": "BERT",
    "language_model_text": "Language model",
}  # fmt: skip
NAMES = {"mlp_digits": "MLP", **IMAGES, **SEQUENCES}
NORMS = ("none", "batch", "example")
EXAMPLE = {name: "group" if name in IMAGES else "layer" for name in NAMES}  # what `example` is in each
FACTORS = (1.0, 0.3)  # times the learning rate of the config
USUAL = {name: "example" if name in SEQUENCES else "batch" for name in NAMES}


def cells(quick: bool) -> list[Settings]:
    """Each config with each norm; a quick study has one config."""
    names = ["mlp_digits"] if quick else list(NAMES)
    digests = {name: digest(config) for name, config in marked().items()}
    return [{"config": name, "made": digests[name], "norm": norm} for name in names for norm in norms_for(name)]


def norms_for(name: str) -> tuple[str, ...]:
    """Those that can sit in it: there is no cell of a GRU with batch norm."""
    return tuple(norm for norm in NORMS if (name, norm) != ("gru_digits", "batch"))


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """The accuracy of each seed after each epoch, at each learning rate; a program is compiled once for all seeds."""
    own = marked()[settings["config"]]
    norm = EXAMPLE[settings["config"]] if settings["norm"] == "example" else settings["norm"]
    data = load_data(own.data)
    for factor in FACTORS:
        config = changed(own, norm, factor)
        program, per_epoch = program_of(config, data), steps_per_epoch(config, data)
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder, reporting(0, quiet=True) as report:
                records = train(dataclasses.replace(config, seed=seed), data, program, Path(folder), report)
            for record in (r for r in records if r["step"] % per_epoch == 0):
                yield Measured(seed, "accuracy", int(record["step"]), record["eval/accuracy"], {"rate": factor})


def changed(config: Config, norm: str, factor: float) -> Config:
    """The config with another norm, and with so many times its learning rate."""
    rate = factor * config.optimizer.learning_rate
    optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
    return dataclasses.replace(with_norm(config, norm), optimizer=optimizer)


# Figures


def curves(evidence: Evidence, config: str, norm: str) -> dict[int, np.ndarray]:
    """By steps of training, the accuracies of the seeds at the rate whose last ones are the best in the mean."""
    own = {"config": config, "norm": norm}
    steps = sorted({row.step for row in evidence.select(own)})
    if not steps:
        raise LookupError(f"accuracy of config={config} norm={norm}")
    found = [{t: evidence.values("accuracy", {**own, "rate": r}, t) for t in steps} for r in FACTORS]
    return max(found, key=lambda curve: curve[steps[-1]].mean())


def last(evidence: Evidence, config: str, norm: str) -> np.ndarray:
    """The accuracies of the seeds at the end."""
    return [*curves(evidence, config, norm).values()][-1]


def first(evidence: Evidence, config: str, norm: str) -> np.ndarray:
    """The accuracies of the seeds after the first epoch."""
    return next(iter(curves(evidence, config, norm).values()))


def most_of(verdicts: Sequence[Verdict]) -> Verdict:
    """That of a sentence about more than half of some networks."""
    held, half = verdicts.count("confirmed"), len(verdicts) / 2
    if held > half:
        return "confirmed"
    return "within noise" if held + verdicts.count("within noise") > half else "refuted"


def _gain(evidence: Evidence, name: str, better: str, worse: str = "none", of: Any = last) -> Interval:
    """How many points of accuracy one norm is better than another one."""
    return interval(100 * (of(evidence, name, better) - of(evidence, name, worse)))


def _points(names: Iterable[str], better: str, worse: str) -> Any:
    """The gain of each config, and for how many there is one."""

    def figures(evidence: Evidence) -> dict[str, Any]:
        gains = {n: _gain(evidence, n, better, worse) for n in names}
        verdicts = [gain.above(0) for gain in gains.values()]
        return {**gains, "better": str(verdicts.count("confirmed")), "worse": str(verdicts.count("refuted"))}

    return figures


def _sooner(evidence: Evidence) -> dict[str, Any]:
    return {name: _gain(evidence, name, USUAL[name], of=first) for name in NAMES}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{NAMES[name]} {{{name}:+.1f}}" for name in names)


def _most_above(names: Iterable[str], bound: float = 0.0) -> Any:
    return lambda f: most_of([f[name].above(bound) for name in names])


BOTH = [name for name in SEQUENCES if "batch" in norms_for(name)]

CLAIMS = (
    Claim(
        "convolutional networks",
        f"Batch norm makes most of {len(IMAGES)} convolutional networks more accurate than they are without a norm. "
        f"Found: {{better}} of them, and {{worse}} less accurate; in points {_listed(IMAGES)}.",
        _points(IMAGES, "batch", "none"),
        _most_above(IMAGES),
        "it did so in half of them or fewer",
        "Ioffe and Szegedy show it for one architecture, Inception (arXiv:1502.03167).",
    ),
    Claim(
        "recurrent networks and transformers",
        f"Layer norm makes most of {len(SEQUENCES)} recurrent networks and transformers more accurate than they are "
        f"without a norm. Found: {{better}} of them, and {{worse}} less accurate; in points {_listed(SEQUENCES)}.",
        _points(SEQUENCES, "example", "none"),
        _most_above(SEQUENCES),
        "it did so in half of them or fewer",
        "Ba et al. show it for recurrent networks (arXiv:1607.06450); transformers have had it since arXiv:1706.03762.",
    ),
    Claim(
        "sooner",
        f"After the first epoch most of the {len(NAMES)} networks are more accurate with a norm than without: batch "
        f"norm for images, layer norm for sequences. In points: {_listed(NAMES)}.",
        _sooner,
        _most_above(NAMES),
        "half of them or fewer were",
    ),
    Claim(
        "group norm in convolutional networks",
        f"Group norm comes within two points of batch norm, or above it, in most of {len(IMAGES)} convolutional "
        f"networks. Found, in points beside batch norm: {_listed(IMAGES)}.",
        _points(IMAGES, "example", "batch"),
        _most_above(IMAGES, -2.0),
        "it did so in half of them or fewer",
        "Wu and He find group norm 0.5 points behind batch norm in a ResNet-50 with 32 images a device "
        "(arXiv:1803.08494, table 1).",
    ),
    Claim(
        "batch norm in sequences",
        f"In most of {len(BOTH)} recurrent networks and transformers layer norm is more accurate than batch norm. "
        f"Found, in points beside batch norm: {_listed(BOTH)}. There is no GRU with batch norm.",
        _points(BOTH, "example", "batch"),
        _most_above(BOTH),
        "it was so in half of them or fewer",
        "Shen et al. find batch norm worse in transformers for language (arXiv:2003.07845).",
    ),
)


# Pictures


def pictures(evidence: Evidence) -> list[Chart]:
    names = [n for n in NAMES if all(evidence.select({"config": n, "norm": norm}) for norm in norms_for(n))]
    if not names:
        return []
    gains = [
        {"network": NAMES[n], "norm": _called(norm), **_gain(evidence, n, norm).named("points", 2)}
        for norm in NORMS[1:]
        for n in names
        if norm in norms_for(n)
    ]
    lines = [row for name in names for row in _curve(evidence, name)]
    return [
        Chart(
            "What is a norm worth?",
            "Points of accuracy on what is held out, more than without a norm: the mean over the seeds, with its 95 % "
            "interval.",
            charts.bars(gains, x="network", y="points", facet="norm", order=[NAMES[n] for n in names]),
            _table(evidence, names),
        ),
        Chart(
            "How soon do they learn?",
            "Accuracy on what is held out after each epoch, by the part of the training in %. Click a norm in the "
            "legend to fade the others.",
            charts.lines(
                lines,
                x="% of training",
                y="accuracy",
                colour="norm",
                order=[_called(n) for n in NORMS],
                facet="network",
            ),
        ),
    ]


def _called(norm: str) -> str:
    return "group or layer" if norm == "example" else norm


def _curve(evidence: Evidence, name: str) -> list[dict[str, Any]]:
    """Rows of a picture."""
    found = []
    for norm in norms_for(name):
        curve = curves(evidence, name, norm)
        for step, values in curve.items():
            part = round(100 * step / max(curve))
            own = {"network": NAMES[name], "norm": _called(norm), "% of training": part}
            found.append({**own, **interval(values).named("accuracy")})
    return found


def _table(evidence: Evidence, names: Sequence[str]) -> Table:
    def accuracy(name: str, norm: str) -> str:
        return f"{interval(100 * last(evidence, name, norm)):.1f}" if norm in norms_for(name) else ""

    rows = [[NAMES[n], *(accuracy(n, norm) for norm in NORMS), EXAMPLE[n]] for n in names]
    return Table("Accuracy in %, mean and 95 % interval", ["", "none", "batch", "group or layer", "which"], rows)


STUDY = Study(
    name="structures",
    title="Other structures",
    question="Do norms work in other structures: in each architecture of the zoo?",
    protocol=(
        f"The configs of {len(NAMES)} architectures, as `python -m experiments.train` trains them, with the norm of "
        "the config replaced by none, by batch norm, and by a norm of single examples, which is group norm (8 groups) "
        "in convolutional networks and layer norm in the others. Nothing else changes. A config was chosen with its "
        f"own norm; so that this decides less, each norm also gets {FACTORS[1]:g} times the learning rate of the "
        "config, and of both the one with the better mean accuracy on what is held out.\n\n"
        "Images are the 8 by 8 digits, the Transformer reverses sequences of numbers, BERT and the language model read "
        "the text of Python's help. The numbers are accuracies on what is held out, of characters or of numbers where "
        "the data is text or a sequence. In training, batch norm measures all positions of a text, in the language "
        "model also those that come later. Two more configs, of recurrent networks that read single pixels, are not "
        "part of this study; what they reach is in `docs/results/configs.md`."
    ),
    cells=cells,
    run=run,
    seeds=5,
    constants={"factors": FACTORS, "group or layer": EXAMPLE},
    claims=CLAIMS,
    charts=pictures,
)
