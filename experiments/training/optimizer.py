"""The optimizer of a config: its schedule, and what is added to a gradient or taken from the weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bnjax import linen as bnn
from experiments.config import OptimizerConfig, RegularizersConfig

MOMENTUM = 0.9


def make_optimizer(
    config: OptimizerConfig, total_steps: int, regularizers: RegularizersConfig | None = None
) -> optax.GradientTransformation:
    """The optimizer of a config, with its schedule over `total_steps`.

    Gradients are those of the loss with L1 and L2; they are clipped; then the optimizer makes a step of them, and
    weight decay takes a part of the weights.
    """
    given = regularizers or RegularizersConfig()
    reached = None if given.decay_norms else decayed
    before = []
    if given.l1:
        before.append(_of(reached, optax.stateless(functools.partial(_with_signs, strength=given.l1))))
    if given.l2:
        before.append(optax.add_decayed_weights(given.l2, reached))
    if given.clip_norm is not None:
        before.append(optax.clip_by_global_norm(given.clip_norm))
    if given.clip_adaptive is not None:
        before.append(optax.adaptive_grad_clip(given.clip_adaptive))
    schedule = schedule_of(config, total_steps)
    step = _step(config, schedule, given.weight_decay, reached)
    return optax.chain(*before, step) if before else step


def _step(config: OptimizerConfig, rate: optax.Schedule, decay: float, reached: Any) -> optax.GradientTransformation:
    if config.name == "adam":
        return optax.adamw(rate, weight_decay=decay, mask=reached) if decay else optax.adam(rate)
    if not decay:
        return optax.sgd(rate, momentum=MOMENTUM, nesterov=True)
    return optax.chain(
        optax.trace(MOMENTUM, nesterov=True),
        optax.add_decayed_weights(decay, reached),
        optax.scale_by_learning_rate(rate),
    )


def _with_signs(gradients: Any, params: Any, strength: float) -> Any:
    """The gradients with that of `strength` times the sum of absolute values."""
    return jax.tree.map(lambda g, p: g + strength * jnp.sign(p), gradients, params)


def _of(reached: Any, transform: optax.GradientTransformation) -> optax.GradientTransformation:
    return transform if reached is None else optax.masked(transform, reached)


def decayed(params: Any) -> Any:
    """Which parameters L1, L2 and weight decay reach: all but those of norms, in linen and in nnx."""
    return jax.tree.map(lambda is_norm: not is_norm, bnn.norm_params_mask(params))


def schedule_of(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate of each step."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, total_steps)
    after = optax.constant_schedule(peak)
    if config.schedule == "cosine" and warmup < total_steps:
        after = optax.cosine_decay_schedule(peak, total_steps - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after
