"""Do norms work in other structures? A config for each architecture of the zoo, with three norms."""

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.report import reporting
from experiments.config import Config
from experiments.config.file import load
from experiments.data import load_data
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval
from experiments.results.config_page import digest
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study
from experiments.training.run import program_of, train

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
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
NEAR = 0.02  # two points of accuracy


def cells(quick: bool) -> list[Settings]:
    """Each config with each norm; a quick study has one config."""
    names = ["mlp_digits"] if quick else list(NAMES)
    digests = {name: digest(load(str(CONFIGS / f"{name}.py"))) for name in names}
    return [{"config": name, "made": digests[name], "norm": norm} for name in names for norm in NORMS]


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """The accuracy of each seed after each epoch, at each learning rate; a program is compiled once for all seeds."""
    own = load(str(CONFIGS / f"{settings['config']}.py"))
    norm = EXAMPLE[settings["config"]] if settings["norm"] == "example" else settings["norm"]
    data = load_data(own.data)
    for factor in FACTORS:
        config = changed(own, norm, factor)
        program = program_of(config, data)
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder, reporting(0, quiet=True) as report:
                records = train(dataclasses.replace(config, seed=seed), data, program, Path(folder), report)
            for record in records:
                yield Measured(seed, "accuracy", int(record["step"]), record["eval/accuracy"], {"rate": factor})


def changed(config: Config, norm: str, factor: float) -> Config:
    """The config with another norm, and with so many times its learning rate."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, norm=norm),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=factor * config.optimizer.learning_rate),
    )


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
    return [*curves(evidence, config, norm).values()][0]


STUDY = Study(
    name="structures",
    title="Other structures",
    question="Do norms work in other structures: in each architecture of the zoo?",
    protocol="",
    cells=cells,
    run=run,
    seeds=5,
    constants={"factors": FACTORS, "group or layer": EXAMPLE},
    claims=(),
    charts=lambda evidence: [],
)
