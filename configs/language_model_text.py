"""A language model of characters, in the text of Python's own help: the encoder of BERT, pre-norm and causal.

    python -m experiments.train --config=configs/language_model_text.py

Each piece of text has 32 characters.

`python -m experiments.marks` measured:

- median accuracy of three seeds, held-out examples: 0.5612 (0.5504 to 0.5617); the mark is 0.52
- without a norm (`--config.model.norm=none`, seed 0): 0.5803
- CPU time, compilation included: 43 s at most
- time on the clock: 178 s at most, on a busy machine with 2 cores
"""

from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        task="language_model",
        mark=0.52,
        data=DataConfig(name="text", length=32),
        model=ModelConfig(name="bert", size="small_pre", norm="layer"),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.008, warmup_steps=50),
        train=TrainConfig(epochs=2, batch_size=32),
    )
