"""An SGD step of a ResNet, timed at a size that the machine can run."""

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import resnet
from experiments.bench.options import Arguments
from experiments.measure.timing import Timed, interleave

SMALL = {"batch": 16, "size": 64, "stages": (1, 1, 1, 1), "filters": 16}
WHOLE = {"batch": 128, "size": 224, "stages": resnet.FIFTY, "filters": 64}


def measure(arguments: Arguments, sizes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The seconds of all contenders, in every dtype."""
    what = "ResNet, {stages} blocks of {filters} filters, {batch} images of {size}²".format(**sizes)
    for dtype in arguments.dtypes[: 1 if arguments.quick else None]:
        shape = {"stages": sizes["stages"], "filters": sizes["filters"], "dtype": jnp.dtype(dtype)}
        contenders = resnet.models(arguments.memory_switch)
        models = {n: resnet.ResNet(**a, **shape) for n, a in contenders.items() if arguments.chooses(n)}
        if not models:
            return
        images, labels = resnet.images_and_labels(sizes["batch"], sizes["size"], jnp.dtype(dtype))
        pixels = np.random.default_rng(0).standard_normal(images.shape, np.float32)
        data = jnp.asarray(pixels, images.dtype), jnp.zeros(labels.shape, labels.dtype)
        # All have the same variables, and drawing them takes as long to compile as the step.
        state = jax.jit(partial(resnet.initial, next(iter(models.values())), images))()
        timed = {name: _step(model, jax.tree.map(jnp.copy, state), data) for name, model in models.items()}
        for name, seconds in interleave(timed, arguments.rounds).items():
            yield {
                "what": what, "dtype": dtype, "contender": name,
                "min_seconds": min(seconds), "median_seconds": median(seconds),
            }  # fmt: skip


def _step(model: resnet.ResNet, state: Any, data: Any) -> Timed:
    """A step that goes on where the last one ended, in the same memory."""
    step = jax.jit(resnet.step_of(model), donate_argnums=(0, 1, 2))

    def call() -> Any:
        nonlocal state
        *state, loss = step(*state, *data)
        return state, loss

    return Timed(call)
