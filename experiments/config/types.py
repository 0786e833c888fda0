"""The types of an experiment's config. `experiments.cli.schema` checks the limits that stand beside the types."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

import bnjax
from experiments.cli.schema import Count, Range

Width = Annotated[int, Range(low=1, high=2**16)]
BatchSize = Annotated[int, Range(low=2, high=2**31 - 1)]
Strength = Annotated[float, Range(low=0, high=1000)]
Positive = Annotated[float, Range(above=0, high=1e9)]
Steps = Annotated[int, Range(low=0, high=2**31 - 1)]
# All norms of activations that need nothing at the call but the input; `ghost` is `batch` measured in slices.
NORMS = tuple(n for n, row in bnjax.NORMS.items() if n not in ("domain", "split") and not row.wraps)
if TYPE_CHECKING:
    Norm = str
    Named = Any  # a name; in a file with `get_config()` also what the file itself defines
else:
    Norm = Literal[("none", *NORMS)]
    Named = str


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is learned from."""

    name: Named = "digits"  # one of `experiments.data.SETS`, or `FILE.py:NAME`
    directory: str = ""  # where the four idx files are (`idx`; `fashion_mnist`, if not where Debian puts them)
    train_examples: Count | None = None  # only this many of the training examples
    eval_examples: Count | None = None  # only this many of the held-out ones
    shuffle_labels: bool = False  # shuffle the training labels: nothing can be learned then
    corruption: str = ""  # damage to the held-out images, one of `experiments.data.corruptions.KINDS`
    severity: Annotated[int, Range(low=1, high=5)] = 1  # of that damage
    length: Annotated[int, Range(low=2, high=2**16)] = 32  # of a sequence (`text`, `copy`, `reverse`, `sort`)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network, and the norm in it."""

    name: Named = "article_cnn"  # one of `experiments.models.MODELS`, or `FILE.py:NAME`
    api: Literal["linen", "nnx"] = "linen"  # the same network, layer by layer
    norm: Norm = "batch"
    momentum: Annotated[float, Range(low=0, high=1)] = 0.9  # the fraction of the running statistics that is kept
    groups: Count = 8  # of channels (`group`, `evonorm_s0`, `bcn`); what does not divide them becomes what does
    ghost_size: Annotated[int, Range(low=2, high=2**31 - 1)] = 16  # examples in a slice (`ghost`)
    widths: tuple[Width, Width, Width] = (32, 64, 128)  # of two convolutions and the dense layer (`article_cnn`)
    size: str = ""  # of the zoo's models, one that they have; `small` by default
    dropout: Annotated[float, Range(low=0, below=1)] | None = None  # by default the choice of the model
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"  # of everything; bfloat16: of the activations alone


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How it is learned."""

    name: Literal["sgd", "adam"] = "sgd"  # `sgd` with Nesterov momentum 0.9
    learning_rate: Annotated[float, Range(above=0, high=100)] = 0.1  # its peak
    schedule: Literal["cosine", "constant"] = "cosine"  # to zero at the last step, or not at all
    warmup_steps: Steps = 0  # linear, from zero to the peak


@dataclasses.dataclass(frozen=True)
class RegularizersConfig:
    """What keeps a model from learning the examples by heart."""

    label_smoothing: Annotated[float, Range(low=0, high=1)] = 0.0  # the part of a label that all classes share
    l1: Strength = 0.0  # times the sum of absolute weights, in what is minimized
    l2: Strength = 0.0  # times half the sum of squared weights, in what is minimized
    weight_decay: Strength = 0.0  # this part of a weight, times the learning rate, is taken away in each step (AdamW)
    decay_norms: bool = False  # whether those three also reach the scales and biases of norms
    clip_norm: Positive | None = None  # the largest norm of the gradient of all weights together
    clip_adaptive: Positive | None = None  # the largest norm of a unit's gradient, as a part of that of its weights
    average: Annotated[float, Range(low=0, high=1)] = 0.0  # of averaged weights, the part that a step keeps; 0: none


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How the work is spread over the devices. Every layout computes the same; `sync` says what."""

    layout: Literal["jit", "shard_map", "pmap", "vmap"] = "jit"
    sync: Literal["global", "device", "group"] = "global"  # whose examples the norms measure together
    group_size: Count | None = None  # devices in a group (`sync="group"`)
    fake_devices: Annotated[int, Range(low=1, high=1024)] | None = None  # pretend that the CPU is so many devices


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, and how it is watched."""

    epochs: Count = 12
    batch_size: BatchSize = 64
    accumulate: Count = 1  # micro-batches of a batch, one after the other: less memory, each measured by itself
    eval_batch_size: Count = 512
    eval_every: Steps = 0  # steps between evaluations; there is one after every epoch, too


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What is measured beside the held-out examples by the running statistics."""

    recalibrate: Steps = 0  # batches of the training data whose statistics serve a second evaluation; 0: no second one


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: Annotated[int, Range(low=0, high=2**31 - 1)] = 0  # of the initial parameters and the order of examples
    task: Named = "classification"  # one of `experiments.tasks.TASKS`, or `FILE.py:NAME`
    mark: Annotated[float, Range(low=0, high=1)] | None = None  # the accuracy that a run is expected to reach
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    regularizers: RegularizersConfig = RegularizersConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


def with_norm(config: Config, norm: str) -> Config:
    """The config with another norm, or with `none`."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, norm=norm))
