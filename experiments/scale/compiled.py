"""One step compiled for devices that need not be there: a program of its own, started by `experiments.scale`.

It needs the environment of its target, so nothing but JAX, Flax, Optax and bnjax is imported here. It reads what to do
as JSON from its argument and prints what it finds as JSON.
"""

import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bnjax import linen as bnn
from experiments.config import Config, ParallelConfig, TrainConfig
from experiments.measure.compile import run_child
from experiments.measure.hlo import collectives
from experiments.measure.targets import devices, target_of
from experiments.models.network import Job, linen_network
from experiments.models.resnet import FIFTY, ResNet
from experiments.training.layouts import Layout, make_layout
from experiments.training.steps import init_state, train_step

EACH = 32  # examples for each device
OPTIMIZER = optax.sgd(0.1, 0.9)
MODELS: dict[str, dict[str, Any]] = {  # by name: the size of the images, the attributes of `ResNet`
    "ResNet-50": {"size": 224, "stages": FIFTY, "dtype": jnp.bfloat16},
    "one block": {"size": 16, "stages": (1,), "filters": 4, "classes": 10, "dtype": jnp.float32},
}


def compile_step(model: str, layout: Layout) -> tuple[Any, float]:
    """The compiled training step of a ResNet, and the seconds of processor time that it took."""
    arguments = dict(MODELS[model])
    size, rows = arguments.pop("size"), EACH * layout.mesh.size
    norm = functools.partial(bnn.BatchNorm, **layout.norm(rows))
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    network = linen_network(ResNet(norm=norm, **arguments), Job(image, classes=1000), takes_mask=False)
    state = jax.eval_shape(functools.partial(init_state, network, OPTIMIZER, "float32"), jax.random.key(0))
    batch = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), arguments["dtype"]),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((rows,), bool),
    }
    step = layout.spread(functools.partial(train_step, network, OPTIMIZER, layout), donate=True)
    began = time.process_time()
    return step.lower(state, batch).compile(), time.process_time() - began


def facts(model: str, layout: Layout) -> dict[str, Any]:
    """What one step needs, on each device."""
    compiled, seconds = compile_step(model, layout)
    counts, operand_bytes = collectives(compiled.as_text())
    return {
        "devices": layout.mesh.size, "counts": counts, "operand_bytes": operand_bytes,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes, "seconds": seconds,
    }  # fmt: skip


def main(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The facts, once, for the `target`, the `model`, and what goes into a `ParallelConfig`."""
    platform, _, kind = task["target"].partition(":")
    if platform == "cpu":
        jax.config.update("jax_num_cpu_devices", int(kind))
        on = jax.devices()
    else:
        target = target_of(task["target"])
        if target.missing:
            yield {"skipped": target.missing}
            return
        on = devices(target)
    config = Config(
        parallel=ParallelConfig(layout=task["layout"], sync=task["sync"], group_size=task["group_size"]),
        train=TrainConfig(batch_size=EACH * len(on)),
    )
    yield facts(task["model"], make_layout(config, on))


if __name__ == "__main__":
    run_child(main)
