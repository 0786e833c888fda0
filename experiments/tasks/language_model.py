"""Language models: each token from those before it, or hidden tokens from all others (arXiv:1810.04805)."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from experiments.config import Config
from experiments.results.curves import Panel, Score
from experiments.results.records import Record
from experiments.tasks import classes
from experiments.tasks.task import Task, View

HIDDEN = 0.15  # of the tokens, as in BERT
BLANK = 0  # the token that is none


def counted(batch: Mapping[str, Array], name: str) -> Array:
    """Which positions of the tokens called `name` count (n, length)."""
    rows = batch["mask"][:, None]
    return rows & batch[f"{name}_mask"] if f"{name}_mask" in batch else jnp.broadcast_to(rows, batch[name].shape)


def shifted(tokens: Array) -> Array:
    """Each token in the place of the next one, and none at the beginning."""
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=BLANK)


def causal_view(batch: Mapping[str, Array], keys: Array | None = None) -> View:
    """The tokens (n, length) shifted by one, and the tokens."""
    mask = counted(batch, "tokens")
    return View(shifted(batch["tokens"]), mask, batch["tokens"], mask)


def masked_view(batch: Mapping[str, Array], keys: Array | None) -> View:
    """The tokens (n, length) with some of them hidden, and the tokens; those that are hidden count.

    Every token is hidden with a probability of 15 %. Where BERT puts another token in the place of some, here it is
    always the one that is none.
    """
    tokens, mask = batch["tokens"], counted(batch, "tokens")
    hidden = mask & jax.vmap(lambda key: jax.random.bernoulli(key, HIDDEN, tokens.shape[1:]))(keys)
    return View(jnp.where(hidden, BLANK, tokens), mask, tokens, hidden)


def perplexity(record: Record, split: str) -> float:
    """What e to the loss is called."""
    return record[f"{split}/perplexity"]


def panels(records: Sequence[Record]) -> list[Panel]:
    """The perplexity, and how many tokens are not the first guess."""
    return [
        classes.panel("Perplexity", records, perplexity),
        classes.panel("Wrong tokens, %", records, classes.percent_wrong, log=False),
    ]


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """The mean loss of a token, the accuracy, and the perplexity."""
    found = classes.means(sums)
    return {**found, "perplexity": float(jnp.exp(found["loss"]))}


def make(config: Config, masked: bool = False) -> Task:
    """The task of a config: causal, or `masked`."""
    return Task(
        needs=("tokens",),
        view=masked_view if masked else causal_view,
        measure=partial(classes.measure, smoothing=config.regularizers.label_smoothing),
        means=means,
        formats={**classes.FORMATS, "perplexity": ".3f"},
        verdict=partial(classes.verdict, what="Perplexity", metric="perplexity"),
        panels=panels,
        score=Score("perplexity", perplexity),
        random=masked,
        outputs=classes.logits_shape,
        options={"causal": not masked},
    )
