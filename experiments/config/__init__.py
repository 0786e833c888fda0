"""The config of an experiment: its types, the files it comes from, and the command line that overrides it."""

from experiments.config.types import NORMS as NORMS
from experiments.config.types import BatchSize as BatchSize
from experiments.config.types import Config as Config
from experiments.config.types import DataConfig as DataConfig
from experiments.config.types import EvalConfig as EvalConfig
from experiments.config.types import ModelConfig as ModelConfig
from experiments.config.types import Norm as Norm
from experiments.config.types import OptimizerConfig as OptimizerConfig
from experiments.config.types import ParallelConfig as ParallelConfig
from experiments.config.types import RegularizersConfig as RegularizersConfig
from experiments.config.types import TrainConfig as TrainConfig
from experiments.config.types import with_norm as with_norm
