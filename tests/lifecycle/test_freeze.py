"""What is frozen stays as it is, bit for bit, and the rest trains."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from bnjax import linen as bnn
from bnjax.linen import freeze, frozen_labels
from tests.kit import models_linen

X = np.random.default_rng(0).normal(1, 2, (8, 6)).astype(np.float32)


class Net(nn.Module):
    """A norm in training; `averages`: it takes `use_running_average`."""

    norm: type

    @nn.compact
    def __call__(self, x, train=True):
        mode = {"use_running_average": not train} if self.norm is not nn.LayerNorm else {}
        return nn.Dense(3, name="head")(nn.relu(self.norm(name="norm")(nn.Dense(6, name="body")(x), **mode)))


NORMS = {
    "flax": nn.BatchNorm,
    "ours": bnn.BatchNorm,
    "renorm": bnn.BatchRenorm,
    "whitening": bnn.IterativeNorm,
    "layer": nn.LayerNorm,
}
WAYS = [flags for flags in product((False, True), repeat=3) if flags != (False, True, False)]


def run(model, params, stats, train=True):
    """Output, gradients of a loss, and the new state."""

    def loss(params):
        y, new = model.apply({"params": params, "batch_stats": stats}, X, train, mutable=["batch_stats"])
        return jnp.square(y).sum(), (y, new.get("batch_stats", {}))

    gradients, (y, new) = jax.grad(loss, has_aux=True)(params)
    return y, gradients, new


@pytest.mark.parametrize("name", NORMS)
def test_state_outputs_and_gradients_in_every_way(name):
    model = Net(NORMS[name])
    variables = models_linen.as_if_trained(model.init(jax.random.key(0), X))
    if name == "whitening":  # a matrix that whitens is no random one
        variables["batch_stats"] = model.init(jax.random.key(0), X)["batch_stats"]
    params, stats = variables["params"], variables.get("batch_stats", {})
    batch, reports = name in ("flax", "ours"), {}

    @jax.jit
    def all_ways(params, stats):
        results = {"train": run(model, params, stats), "evaluate": run(model, params, stats, False)}
        for use, update, parameters in WAYS:
            if (name == "layer" and not parameters) or (not batch and name != "layer" and use and update):
                continue  # refused: the next test
            with freeze(use=use, update=update, parameters=parameters) as report:
                results[use, update, parameters] = run(model, params, stats)
            reports[use, update, parameters] = report.done
        return {str(key): value for key, value in results.items()}

    results = all_ways(params, stats)
    assert set(reports.values()) == {("norm",)}
    same = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    for use, update, parameters in reports:
        y, gradients, new = results[str((use, update, parameters))]
        like = results["evaluate" if use else "train"]
        same(y, like[0])
        jax.tree.map(same, gradients["body"], like[1]["body"])
        if parameters:
            assert all((np.asarray(t) == 0).all() for t in jax.tree.leaves(gradients["norm"]))
        else:
            jax.tree.map(same, gradients["norm"], like[1]["norm"])
        if update:
            jax.tree.map(same, new, results["train"][2])
        else:
            jax.tree.map(np.testing.assert_array_equal, new, stats)


def test_what_cannot_be_held_is_refused_by_name():
    layer, renorm = Net(nn.LayerNorm), Net(bnn.BatchRenorm)
    words = r"`freeze` found nothing to do(.|\n)*norm \(layer\): it has no running state; `parameters=True`"
    with pytest.raises(ValueError, match=words), freeze():
        layer.init(jax.random.key(0), X)
    variables = renorm.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"norm \(renorm\): a state of a norm of kind 'renorm'"), freeze(update=True):
        renorm.apply(variables, X, mutable=["batch_stats"])
    with pytest.raises(ValueError, match=r"`freeze.*holds nothing"), freeze(use=False, update=True):
        pass
    with pytest.raises(ValueError, match=r"`use`.*2"), freeze(use=2):
        pass


def test_init_inside_is_flaxs_init():
    model = Net(nn.BatchNorm)
    want = model.init(jax.random.key(0), X)
    with freeze(parameters=True) as report:
        got = model.init(jax.random.key(0), X)
    with freeze():
        shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, want)
    assert report.done == ("norm",)


class Pretrained(nn.Module):
    """A sub-net that somebody trained, and a new head."""

    @nn.compact
    def __call__(self, x):
        x = Net(nn.BatchNorm, name="old")(x)
        return nn.Dense(2, name="head")(nn.BatchNorm(use_running_average=False, name="norm")(x))


def test_one_pretrained_sub_net_stays_bit_for_bit_while_the_other_trains_with_weight_decay():
    model = Pretrained()
    variables = models_linen.as_if_trained(model.init(jax.random.key(0), X))
    params, stats = variables["params"], variables["batch_stats"]
    labels = frozen_labels(params, "^old/")
    tx = optax.multi_transform({"train": optax.adamw(1e-2), "frozen": optax.set_to_zero()}, labels)

    @jax.jit
    def step(params, stats, opt_state):
        def loss(params):
            y, new = model.apply({"params": params, "batch_stats": stats}, X, mutable=["batch_stats"])
            return jnp.square(y - 1).mean(), new["batch_stats"]

        gradients, stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    now = params, stats, tx.init(params)
    with freeze("^old/"):
        for _ in range(20):
            now = step(*now)
    jax.tree.map(np.testing.assert_array_equal, now[0]["old"], params["old"])
    jax.tree.map(np.testing.assert_array_equal, now[1]["old"], stats["old"])
    for tree, old in (
        (now[0]["head"], params["head"]),
        (now[0]["norm"], params["norm"]),
        (now[1]["norm"], stats["norm"]),
    ):
        assert all((a != b).all() for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(old), strict=True))
