"""The contexts of linen: which calls they reach, what they ask together, and what they leave as it was."""

import contextlib
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bnjax import linen as bnn
from bnjax.linen import freeze, swap, upgrade

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
