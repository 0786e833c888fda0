"""The contexts of linen: which calls they reach, what they ask together, and what they leave as it was."""

import contextlib
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from bnjax import linen as bnn
from bnjax.linen import freeze, swap, upgrade
from tests.kit import devices, models_linen
from tests.kit.models_linen import LINEN
from tests.kit.population import wide

X = np.random.default_rng(0).normal(1, 2, (8, 6)).astype(np.float32)


class Net(nn.Module):
    """Two norms with a layer between them; the class of the norms is an argument."""

    norm: type = nn.BatchNorm

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.relu(self.norm(use_running_average=not train, name="first")(nn.Dense(6)(x)))
        return nn.Dense(3)(self.norm(use_running_average=not train, name="second")(x))


NET = Net()
VARIABLES = NET.init(jax.random.key(0), X)


def step(variables, x, net=NET):
    """The output and the new state of a step of training."""
    return net.apply(variables, x, mutable="batch_stats")


def var_of(result):
    return np.asarray(result[1]["batch_stats"]["first"]["var"])


FLAX, UNBIASED = var_of(step(VARIABLES, X)), var_of(step(VARIABLES, X, Net(partial(bnn.BatchNorm, unbiased=True))))
FROZEN = np.asarray(VARIABLES["batch_stats"]["first"]["var"])


def is_close(a, b):
    return np.allclose(a, b, rtol=1e-6)


def test_the_three_results_differ():
    assert not is_close(FLAX, UNBIASED)
    assert not is_close(FLAX, FROZEN)


def test_a_function_that_was_jitted_before_is_reached_and_is_itself_again_afterwards():
    traces = []
    f = jax.jit(lambda v, x: traces.append(1) or step(v, x))
    for _ in range(2):
        assert is_close(var_of(f(VARIABLES, X)), FLAX)
    for _ in range(2):  # an equal context finds the program of the first
        with upgrade(unbiased=True):
            for _ in range(2):
                assert is_close(var_of(f(VARIABLES, X)), UNBIASED)
        assert is_close(var_of(f(VARIABLES, X)), FLAX)
    assert len(traces) == 2


@pytest.mark.parametrize("freeze_first", [False, True])
def test_nested_in_both_orders_then_each_alone_on_one_jitted_function(freeze_first):
    f = jax.jit(step)
    contexts = [freeze, partial(upgrade, unbiased=True)][:: 1 if freeze_first else -1]
    with contexts[0](), contexts[1]():
        assert (var_of(f(VARIABLES, X)) == FROZEN).all()
    with upgrade(unbiased=True):
        assert is_close(var_of(f(VARIABLES, X)), UNBIASED)
    with freeze():
        assert (var_of(f(VARIABLES, X)) == FROZEN).all()
    assert is_close(var_of(f(VARIABLES, X)), FLAX)


def test_swap_and_upgrade_and_freeze_in_every_order():
    f, orders = jax.jit(step), ([0, 1, 2], [2, 1, 0], [1, 0, 2])
    made = [partial(swap, "layer", "first"), partial(upgrade, epsilon=0.5), partial(freeze, "second", parameters=True)]
    outputs = []
    for order in orders:
        a, b, c = (made[i] for i in order)
        with a(), b(), c():
            outputs.append(f(VARIABLES, X))
    for other in outputs[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, outputs[0])
    assert is_close(var_of(f(VARIABLES, X)), FLAX)


def test_equal_contexts_inside_of_each_other_each_end_for_themselves():
    f = jax.jit(step)
    with upgrade(unbiased=True) as outer:
        with upgrade(unbiased=True) as inner:
            assert is_close(var_of(f(VARIABLES, X)), UNBIASED)
        assert is_close(var_of(f(VARIABLES, X)), UNBIASED)
    assert outer.done == inner.done == ("first", "second")
    assert is_close(var_of(f(VARIABLES, X)), FLAX)


def test_contexts_that_generators_hold_may_end_in_any_order():
    f = jax.jit(step)

    def held(context):
        with context as report:
            yield report

    one, other = held(upgrade(unbiased=True)), held(freeze())
    next(one), next(other)
    assert (var_of(f(VARIABLES, X)) == FROZEN).all()
    one.close()
    for call in (f, step):
        assert (var_of(call(VARIABLES, X)) == FROZEN).all()
    one = held(upgrade(unbiased=True))
    next(one)
    other.close()
    for call in (f, step):
        assert is_close(var_of(call(VARIABLES, X)), UNBIASED)
    one.close()
    for call in (f, step):
        assert is_close(var_of(call(VARIABLES, X)), FLAX)


def test_two_threads_do_not_see_each_other():
    f, meet, found = jax.jit(step), threading.Barrier(2), {}

    def run(name, context):
        with context() if context else jax.named_scope("nothing"):
            meet.wait(60)
            found[name] = var_of(f(VARIABLES, X)), var_of(step(VARIABLES, X))
            meet.wait(60)

    threads = [threading.Thread(target=run, args=a) for a in ((0, partial(upgrade, unbiased=True)), (1, None))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(is_close(v, UNBIASED) for v in found[0])
    assert all(is_close(v, FLAX) for v in found[1])


def test_what_was_compiled_before_is_not_reached_and_nothing_is_said():
    compiled = jax.jit(step).lower(VARIABLES, X).compile()
    with upgrade(unbiased=True) as report:
        assert is_close(var_of(compiled(VARIABLES, X)), FLAX)
    assert len(report) == 0


def test_an_error_inside_is_not_hidden_and_nothing_stays_in_force():
    def mine(variables, x):
        with upgrade("no such path", unbiased=True):
            step(variables, x)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        jax.eval_shape(mine, VARIABLES, X)
    assert is_close(var_of(step(VARIABLES, X)), FLAX)


def test_contexts_that_contradict_each_other_raise():
    def run(*contexts):
        with contextlib.ExitStack() as exits:
            for context in contexts:
                exits.enter_context(context)
            jax.eval_shape(step, VARIABLES, X)

    with pytest.raises(ValueError, match=r"`momentum` was given twice .*'first', as 0\.5 and as 0\.9"):
        run(upgrade(momentum=0.5), upgrade(momentum=0.9))
    with pytest.raises(ValueError, match=r"`swap` was asked twice .*'first': for group and for layer"):
        run(swap("group"), swap("layer"))
    run(upgrade("first", momentum=0.5), upgrade("second", momentum=0.9), upgrade(momentum=0.5, match="first"))


class Setup(nn.Module):
    """Modules that are made in `setup`, and a root whose methods call each other."""

    def setup(self):
        self.a, self.b = nn.BatchNorm(use_running_average=False), nn.BatchNorm(use_running_average=False)
        self.idle = nn.BatchNorm(use_running_average=False)

    def features(self, x):
        return nn.relu(self.a(x))

    def __call__(self, x):
        y = self.b(self.features(x))
        return y if not self.is_initializing() else y + self.idle(x)


def test_methods_of_the_root_that_end_early_do_not_make_norms_unreached():
    model = Setup()
    variables = model.init(jax.random.key(0), X)
    with upgrade() as report:
        jax.eval_shape(partial(step, net=model), variables, X)
        assert report.done == ("a", "b")
    assert report.refused == ("idle",)
    assert report["idle"].reason == "it was not called"


def test_what_flax_captures_and_what_is_sown_is_the_same():
    class Sows(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.BatchNorm(use_running_average=False)(x)
            self.sow("intermediates", "y", y)
            return nn.GroupNorm(num_groups=2)(y)

    model = Sows()
    variables = model.init(jax.random.key(0), X)

    def captured():
        keep = {"mutable": ["batch_stats", "intermediates"], "capture_intermediates": True}
        state = jax.eval_shape(partial(model.apply, **keep), variables, X)[1]
        return jax.tree.map(jnp.shape, state["intermediates"])

    flax = captured()
    for context in (upgrade(), freeze(), freeze(parameters=True), swap("layer")):
        with context:
            assert captured() == flax


OPTIONS = {
    "unbiased": {"unbiased": True},
    "ghost": {"virtual_batch_size": 2},
    "momentum": {"momentum": 0.5},
    "pool": {"momentum": None},
    "none": {"pivot": None},
    "sample": {"pivot": "sample"},
    "two passes": {"use_fast_variance": False},
    "epsilon": {"epsilon": 0.1},
    "relu": {"activation": "relu"},
    "bfloat16": {"dtype": jnp.bfloat16},
    "evaluation": {"use_running_average": True},
    "training": {"use_running_average": False},
    "stateless": {"track_running_stats": False},
    "no scale": {"use_scale": False},
    "plain": {},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_gives_what_our_module_built_with_it_gives(name):
    options = OPTIONS[name]

    def built(use_running_average, name):
        return bnn.BatchNorm(**{"use_running_average": use_running_average} | options, name=name)

    modes = [True] if name == "stateless" else [True, False]  # it refuses to be evaluated

    @jax.jit
    def run(variables):
        with upgrade(**options) as report:
            got = [NET.apply(variables, X, train, mutable="batch_stats") for train in modes]
        assert report.done == ("first", "second")
        return got, [Net(built).apply(variables, X, train, mutable="batch_stats") for train in modes]

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), *run(VARIABLES))


def test_an_upgrade_without_options_runs_through_bnjax():
    """At a large mean Flax's variance is lost; ours is not."""
    x = X + np.float32(1e4)
    model = nn.BatchNorm(use_running_average=False)
    variables = model.init(jax.random.key(0), x)
    variables["batch_stats"]["mean"] += 1e4
    want = (x - x.astype(np.float64).mean(0)) / np.sqrt(x.astype(np.float64).var(0) + 1e-5)
    assert abs(step(variables, x, model)[0] - want).max() > 1e-2
    with upgrade():
        np.testing.assert_allclose(step(variables, x, model)[0], want, atol=2e-3)


@pytest.mark.parametrize("name", ["axis", "lifted_last", "shared", "odd", "masked"])
def test_models_of_flax_compute_the_same(name, x64):
    """`evaluate` and `train` were jitted before, outside of the context, and remain what they are.

    In float64: in float32 Flax, which subtracts the square of the mean from the mean of the squares, is off by up to
    6e-5, more or less from process to process.
    """
    variables, example = wide((models_linen.variables(name), LINEN[name].example))
    calls = [partial(f, name, variables, example) for f in (models_linen.evaluate, models_linen.train)]
    before = [call() for call in calls]
    with upgrade() as report:
        inside = [call() for call in calls]
    pairs = {"/".join(k.key for k in p[:-1]) for p, _ in jax.tree_util.tree_leaves_with_path(variables["batch_stats"])}
    assert set(report.done) == pairs
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), inside, before)
    np.testing.assert_array_max_ulp(np.asarray(inside[0]), np.asarray(before[0]), 64)
    jax.tree.map(np.testing.assert_array_equal, [call() for call in calls], before)


def test_gradients_are_flaxs():
    case, variables = LINEN["own"], models_linen.variables("own")

    @jax.jit
    def gradient(params):
        run = nn.apply(case.train, case.make(), mutable=["batch_stats"])
        return jax.grad(lambda p: jnp.square(run(variables | {"params": p}, case.example)[0]).sum())(params)

    want = gradient(variables["params"])
    with upgrade():
        got = gradient(variables["params"])
    largest = max(abs(t).max() for t in jax.tree.leaves(want))  # that of a bias before a norm is nearly zero
    assert (
        max(abs(a - b).max() for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)) < 1e-4 * largest
    )


def over_pmap(f, x):
    return jax.pmap(f, axis_name="d")(x)


def over_shard_map(f, x):
    spread = jax.shard_map(lambda t: f(t[0])[None], mesh=devices.mesh(4), in_specs=P("d"), out_specs=P("d"))
    return jax.jit(spread)(x)


@pytest.mark.parametrize("spread", [over_pmap, over_shard_map])
def test_somebody_elses_model_is_synchronised_over_devices(spread):
    x = (
        np.random.default_rng(1).normal(1, 2, (4, 2, 6)).astype(np.float32)
        + np.arange(4, dtype=np.float32)[:, None, None]
    )
    f = lambda x: step(VARIABLES, x)[0]  # noqa: E731
    alone = spread(f, x)
    with upgrade(axis_name="d"):
        together = spread(f, x)
    np.testing.assert_allclose(together.reshape(8, 3), f(x.reshape(8, 6)), rtol=1e-5, atol=1e-5)
    assert abs(together - alone).max() > 0.1
    np.testing.assert_array_equal(spread(f, x), alone)


def test_init_inside_makes_what_init_outside_makes():
    with upgrade("first", axis_name="not bound here"):
        inside = NET.init(jax.random.key(0), X)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), inside, VARIABLES)


def test_our_own_modules_and_subclasses_are_overridden_once():
    case, variables = LINEN["subclasses"], models_linen.variables("subclasses")
    with upgrade(momentum=0.5) as report:
        _, stats = models_linen.train("subclasses", variables, case.example)
    flax = models_linen.train("subclasses", variables, case.example)[1]
    for path, keeps in (("NormRelu_0", 0.99), ("Named_0", 0.9)):
        old, new, by = (tree[path]["mean"] for tree in (variables["batch_stats"], stats, flax))
        np.testing.assert_allclose(new - old, (by - old) * 0.5 / (1 - keeps), rtol=1e-3, atol=1e-4)
    assert report.done == ("NormRelu_0", "Named_0")
    ours = Net(bnn.BatchNorm)
    with upgrade(momentum=0.5):
        new = var_of(step(VARIABLES, X, ours))
    np.testing.assert_allclose(new - FROZEN, 50 * (FLAX - FROZEN), rtol=1e-4)


def test_importing_bnjax_loads_one_context_and_using_it_traces_nothing_anew():
    code = """
import sys, jax
import bnjax, bnjax.linen
assert {m for m in sys.modules if m.startswith("bnjax._lifecycle")} == {"bnjax._lifecycle", "bnjax._lifecycle.context"}
assert {"recalibrate", "upgrade", "swap", "freeze", "tent", "summary", "adapt", "frozen_labels"} <= {*dir(bnjax.linen)}
traces = []
f = jax.jit(lambda x: traces.append(1) or x)
f(1.0)
from bnjax.linen import recalibrate, upgrade, tent
f(1.0)
with upgrade():
    pass
f(1.0)
assert len(traces) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("context", "options", "words"),
    [
        (upgrade, {"momentun": 0.5}, "momentun.*momentum"),
        (upgrade, {"pivot": "median"}, "`pivot`.*'median'"),
        (upgrade, {"match": "("}, r"`match`.*'\('"),
        (upgrade, {"match": 3}, "`match`.*3"),
        (upgrade, {"axis": [1]}, "`axis` must be hashable.*tuple for a list"),
        (freeze, {"match": "["}, "`match`"),
    ],
)
def test_what_is_wrong_is_said(context, options, words):
    with pytest.raises(ValueError, match=words), context(**options):
        pass


def test_a_match_that_finds_nothing_lists_what_there_is():
    words = r"`upgrade` found nothing to do(.|\n)*first \(batch\): `match` does not select it(.|\n)*second"
    with pytest.raises(ValueError, match=words), upgrade("third"):
        jax.eval_shape(step, VARIABLES, X)


def test_a_norm_of_weights_whose_layer_is_given_its_input_by_name():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.SpectralNorm(nn.Dense(4))(inputs=x, update_stats=False))

    variables = Model().init(jax.random.key(0), X)
    with upgrade() as report:
        jax.eval_shape(Model().apply, variables, X)
    assert report.done == ("BatchNorm_0",)
    assert report["SpectralNorm_0"].reason == "a norm of kind 'spectral', not a batch norm"
