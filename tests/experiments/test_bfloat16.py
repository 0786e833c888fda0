"""Training in bfloat16: what is kept and summed stays in float32, and what is computed does not."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cli.errors import UserError
from experiments.cli.schema import rebuild
from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from experiments.data import batches, kind_of, load_data
from experiments.models import make_network
from experiments.tasks import task_of
from experiments.training import steps

TINY = Path(__file__).with_name("tiny.py")
CASES = [
    ("classification", "digits", "article_cnn", "linen"),
    ("classification", "digits", "article_cnn", "nnx"),
    ("classification", "digits", "mlp", "nnx"),
    ("classification", "digits", "resnet", "linen"),
    ("classification", "digits", "resnet", "nnx"),
    ("masked_language_model", "text", "bert", "linen"),
    ("sequence_to_sequence", "reverse", "transformer", "nnx"),
]


def config_of(task, data, model, api, layout="jit"):
    return Config(
        task=task,
        data=DataConfig(name=data, length=8, train_examples=60, eval_examples=20),
        model=ModelConfig(name=model, api=api, dtype="bfloat16", widths=(4, 4, 8)),
        optimizer=OptimizerConfig(learning_rate=0.05, schedule="constant"),
        parallel=ParallelConfig(layout=layout),
        train=TrainConfig(batch_size=20),
    )


def products(jaxpr):
    """The dtypes of what is multiplied in matrix products and convolutions, also in the programs inside."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield from (v.aval.dtype for v in equation.invars)
        inner = jax.tree.leaves([*equation.params.values()], is_leaf=lambda v: hasattr(v, "eqns"))
        for found in (getattr(v, "jaxpr", v) for v in inner):
            if hasattr(found, "eqns"):
                yield from products(found)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_what_is_kept_is_float32_and_what_is_multiplied_bfloat16(case):
    config = config_of(*case)
    kind = kind_of(load_data(config.data))
    job = steps.job_of(task_of(config), kind)
    network = make_network(config.model, job)
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    program = steps.make_program(config, kind, 1)
    state = jax.eval_shape(program.init, jax.random.key(0))
    kept = {t.dtype for t in jax.tree.leaves((state.params, state.batch_stats, state.opt_state))}
    assert kept - {jnp.dtype("int32")} == {jnp.dtype("float32")}

    def forward(params, stats, x, mask):
        return network.measure(params, stats, x, mask=mask)

    some = jax.tree.map(lambda t: jax.ShapeDtypeStruct((4, *t.shape[1:]), t.dtype), (job.inputs, job.mask))
    closed, (outputs, _) = jax.make_jaxpr(forward, return_shape=True)(params, stats, *some)
    assert outputs.dtype == jnp.float32  # of which the loss is made
    assert {*products(closed.jaxpr)} == {jnp.dtype("bfloat16")}


def trained(config, devices, count):
    """The losses of some steps with all examples."""
    data = load_data(config.data)
    program = steps.make_program(config, kind_of(data), count, jax.devices()[:devices])
    state, losses = program.init(jax.random.key(0)), []
    (batch,) = batches(data.train, 60, share=program.train_share)
    for _ in range(count):
        state, sums = program.train_step(state, batch)
        losses.append(float(sums["loss"] / sums["count"]))
    return losses


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_it_learns_alike_in_other_layouts(api):
    config = config_of("classification", "digits", "mlp", api)
    config = dataclasses.replace(config, train=TrainConfig(batch_size=60))
    losses = trained(config, 1, 10)
    assert losses[-1] < 0.5 * losses[0]
    other = dataclasses.replace(config, parallel=ParallelConfig(layout="shard_map"))
    np.testing.assert_allclose(trained(other, 4, 10), losses, rtol=0.03)


def test_float16_and_a_model_that_takes_no_dtype_are_refused():
    with pytest.raises(UserError, match=r"`config.model.dtype` must be one of .*bfloat16.*'float16'"):
        rebuild(Config(model=ModelConfig(dtype="float16")))
    config = config_of("classification", f"{TINY}:load_images", f"{TINY}:NnxImages", "linen")
    with pytest.raises(UserError, match=re.escape("takes no `dtype`, so it does not compute in bfloat16")):
        steps.make_program(config, kind_of(load_data(config.data)), 1)
