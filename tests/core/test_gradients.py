"""Derivatives: every kind that JAX can ask for, in float64, against plain autodiff of the two-pass formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from bnjax import Moments, batch_norm, moments, normalize
from tests.kit import formulas
from tests.kit.comparison import assert_trees_close

SHAPE = (6, 4, 3)


def plain(x, scale, bias, residual=None, where=None, size=None, relu=False, epsilon=1e-5):
    """Batch normalization as one writes it down, differentiated by JAX alone."""
    axes = (0, 1)
    if size is not None:
        x = x.reshape(-1, size, *x.shape[1:])
        axes = (1, 2)
    valid = jnp.ones(x.shape) if where is None else jnp.broadcast_to(where, x.shape)
    y = formulas.standardized(x, valid, axes, epsilon).reshape(-1, *SHAPE[1:])
    y = y * scale.reshape((1,) * (3 - scale.ndim) + scale.shape) + bias.reshape((1,) * (3 - bias.ndim) + bias.shape)
    y = y if residual is None else y + residual
    return jnp.maximum(y, 0) if relu else y


def ours(x, scale, bias, residual=None, where=None, size=None, relu=False, epsilon=1e-5, **options):
    running = Moments(jnp.zeros(()), jnp.full(SHAPE[-1], 0.3, x.dtype), jnp.ones(SHAPE[-1]))
    return batch_norm(
        x, running, scale, bias, residual=residual, where=where, virtual_batch_size=size, epsilon=epsilon,
        activation="relu" if relu else None, **options,
    )[0]  # fmt: skip


def arrays(shape=SHAPE, seed=0, features=(3,)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * rng.uniform(0.5, 2, shape[-1]) + 3 * rng.normal(size=shape[-1])
    return x, rng.uniform(0.5, 2, features), rng.normal(size=features)


def extra(seed=7):
    return np.random.default_rng(seed).normal(size=SHAPE)


WHERE = np.random.default_rng(3).random((6, 4, 3)) < 0.7
CASES = {
    "plain": ({}, {}),
    "sample": ({}, {"pivot": "sample"}),
    "two passes": ({}, {"pivot": None}),
    "masked": ({"where": WHERE}, {}),
    "relu": ({"relu": True}, {}),
    "residual and relu": ({"relu": True, "residual": extra()}, {}),
    "ghost": ({"size": 2}, {}),
    "per example": ({"features": (6, 1, 3)}, {}),
}
KINDS = {
    "grad": lambda f: jax.grad(lambda *a: f(*a).sum(), (0, 1, 2)),
    "grad of grad": lambda f: jax.grad(
        lambda *a: sum(jnp.sin(g).sum() for g in jax.grad(lambda *b: f(*b).sum(), (0, 1, 2))(*a)), (0, 1, 2)
    ),
    "jvp": lambda f: lambda *a: jax.jvp(f, a, jax.tree.map(jnp.cos, a)),
}


def both(case):
    """The function with its options, ours and plain, of (x, scale, bias); weighted, so that no sum vanishes."""
    shared, own = CASES[case]
    shared = dict(shared)
    features = shared.pop("features", (3,))
    weight = jnp.asarray(extra(9))
    functions = [
        lambda x, s, b, f=f: jnp.square(f(x, s, b) + 0.3) * weight
        for f in (partial(ours, **shared, **own), partial(plain, **shared))
    ]
    return functions, tuple(map(jnp.asarray, arrays(features=features)))


# To float64 rounding; second derivatives are of the order of 10.
assert_close = partial(assert_trees_close, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_those_of_plain_autodiff(case, kind, x64):
    functions, args = both(case)
    got, want = (jax.jit(KINDS[kind](f))(*args) for f in functions)
    assert_close(got, want)


@pytest.mark.parametrize("case", ["plain", "masked", "residual and relu"])
def test_the_jacobian_of_a_jacobian(case, x64):
    functions, args = both(case)
    scalar = [lambda s, b, f=f: f(args[0], s, b).sum((0, 1)) for f in functions]
    assert_close(*(jax.jit(jax.jacfwd(jax.jacrev(f, (0, 1)), (0, 1)))(*args[1:]) for f in scalar))
    hessian = [jax.jit(jax.jacfwd(jax.jacrev(lambda x, f=f: f(x, *args[1:]).sum()))) for f in functions]
    assert_close(*(h(args[0]) for h in hessian))


@pytest.mark.parametrize("case", ["plain", "masked", "ghost", "residual and relu"])
def test_derivatives_are_those_of_finite_differences(case, x64):
    (function, _), args = both(case)
    check_grads(jax.jit(function), args, order=1, modes=("fwd", "rev"), rtol=1e-6)


@pytest.mark.parametrize("case", ["plain", "masked", "residual and relu"])
def test_transformed_it_is_the_same(case, x64):
    """`vmap`, `scan` and `remat`, and the gradient through them."""
    functions, (x, scale, bias) = both(case)
    batch = jnp.stack([x, 2 * x + 1, x[::-1]])

    def through(transform):
        return [
            jax.jit(jax.grad(lambda x, s, b, f=f: jnp.sin(transform(f)(x, s, b)).sum(), (0, 1, 2))) for f in functions
        ]

    def scanned(f):
        return lambda x, s, b: lax.scan(lambda h, _: (jnp.tanh(f(h, s, b)) + x, None), x, None, length=3)[0]

    transforms = [(lambda f: jax.vmap(f, (0, None, None)), batch), (lambda f: scanned(jax.checkpoint(f)), x)]
    if case == "plain":
        transforms += [(scanned, x), (jax.checkpoint, x)]
    for transform, data in transforms:
        got, want = (g(data, scale, bias) for g in through(transform))
        assert_close(got, want, atol=1e-10)


def test_a_complex_gradient_is_that_of_plain_autodiff(x64):
    z = jnp.asarray(arrays()[0] + 1j * arrays(seed=1)[0])
    scale, bias = jnp.asarray(arrays()[1]), jnp.asarray(arrays()[2] + 0.5j)
    weight = extra(9) + 1j * extra(10)

    def grads(f):
        return jax.jit(jax.grad(lambda z, s, b: jnp.square(f(z, s, b) * weight).real.sum(), (0, 1, 2)))(z, scale, bias)

    for where in (None, WHERE):
        assert_close(grads(partial(ours, where=where)), grads(partial(plain, where=where)))


def test_epsilon_has_its_gradient(x64):
    args = tuple(map(jnp.asarray, arrays()))
    got, want = (jax.jit(jax.grad(lambda e, f=f: (f(*args, epsilon=e) ** 3).sum()))(0.1) for f in (ours, plain))
    np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize("relu", [False, True])
def test_evaluation_has_gradients_in_everything(relu, x64):
    x, scale, bias = map(jnp.asarray, arrays())
    mean, var, residual = jnp.asarray(bias) / 2, jnp.asarray(scale) ** 2, jnp.asarray(extra())

    def evaluated(x, mean, var, scale, bias, residual, epsilon):
        m = Moments(jnp.zeros(()), mean, var)
        activation = "relu" if relu else None
        return normalize(x, m, scale, bias, residual=residual, epsilon=epsilon, activation=activation)

    def written_down(x, mean, var, scale, bias, residual, epsilon):
        row = lambda t: t.reshape(1, 1, -1)  # noqa: E731
        y = (x - row(mean)) / jnp.sqrt(row(var) + epsilon) * row(scale) + row(bias) + residual
        return jnp.maximum(y, 0) if relu else y

    args = (x, mean, var, scale, bias, residual, jnp.asarray(0.1))
    for derivative in (
        lambda f: jax.grad(lambda *a: (f(*a) ** 3).sum(), range(7)),
        lambda f: jax.jacfwd(jax.jacrev(lambda *a: (f(*a) ** 3).sum(), range(1, 4)), range(1, 4)),
    ):
        assert_close(*(jax.jit(derivative(f))(*args) for f in (evaluated, written_down)), atol=1e-10)
    check_grads(jax.jit(evaluated), args, order=1, modes=("fwd", "rev"), rtol=1e-5)


# What has no gradient


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"virtual_batch_size": 3}, {"where": WHERE}], ids=str)
def test_the_state_has_no_gradient_and_the_output_none_in_the_state(options):
    x, scale, bias = (jnp.asarray(t, jnp.float32) for t in arrays())
    running = Moments(jnp.zeros(3), jnp.full(3, 0.3), jnp.ones(3))

    def state(x, scale, running):
        return sum(t.sum() for t in jax.tree.leaves(batch_norm(x, running, scale, bias, **options)[1]))

    def output(running):
        return (batch_norm(x, running, scale, bias, **options)[0] ** 3).sum()

    grads = jax.jit(lambda: (jax.grad(state, (0, 1, 2))(x, scale, running), jax.grad(output)(running)))()
    assert len(jax.tree.leaves(grads)) == 8
    for g in jax.tree.leaves(grads):
        np.testing.assert_array_equal(g, 0)


# The activation


def test_a_callable_activation_has_its_own_learned_parameters(x64):
    x, scale, bias = map(jnp.asarray, arrays())

    def prelu(f):
        def loss(slope, x):
            act = lambda z: jnp.where(z > 0, z, slope * z)  # noqa: E731
            return (f(x, act) ** 2).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(0.25, x)

    running = Moments(jnp.zeros(()), jnp.zeros(3), jnp.ones(3))
    want = prelu(lambda x, act: act(plain(x, scale, bias)))
    assert_close(prelu(lambda x, act: batch_norm(x, running, scale, bias, activation=act)[0]), want)
    assert_close(prelu(lambda x, act: normalize(x, moments(x, (0, 1)), scale, bias, activation=act)), want)
    assert want[0] > 1


def test_relu_at_its_kink_is_that_of_jax():
    x = jnp.array([[-1.0], [0.0], [1.0]])
    running = Moments(jnp.zeros(()), jnp.zeros(1), jnp.ones(1))
    dbias = jax.grad(lambda b: batch_norm(x, running, None, b, activation="relu")[0].sum())(jnp.zeros(1))
    assert dbias[0] == jax.vmap(jax.grad(jax.nn.relu))(x[:, 0]).sum() == 1


# What the backward pass keeps


def kept(f, *args):
    """Shapes and dtypes of what `vjp` keeps, of the size of x."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *args))
    return sorted((t.shape, str(t.dtype)) for t in leaves if t.size >= args[0].size)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("pivot", ["running", "sample", None])
def test_the_backward_pass_keeps_x_alone_in_its_own_dtype(dtype, pivot):
    x = jnp.zeros((16, 8, 8, 4), dtype)
    running, row = Moments(jnp.zeros(()), jnp.zeros(4), jnp.ones(4)), jnp.ones(4)
    one = (x.shape, str(x.dtype))

    def train(x, scale, bias, residual=None, **options):
        return batch_norm(x, running, scale, bias, residual=residual, pivot=pivot, **options)[0]

    def evaluate(x, scale, bias, residual=None, **options):
        return normalize(x, running, scale, bias, residual=residual, **options)

    for f in (train, evaluate):
        assert kept(f, x, row, row) == [one]
        assert kept(partial(f, activation="relu"), x, row, row) == [one]
        assert kept(f, x, row, row, x) == [one]
        assert kept(partial(f, activation="relu"), x, row, row, x) == [one, one]
    assert kept(partial(train, virtual_batch_size=4), x, row, row) in ([one], [((4, 4, 8, 8, 4), one[1])])


def test_an_integer_scale_has_gradients_around_it():
    """An integer has no tangent, which must not get in the way of the others'."""
    x, running = jnp.asarray(arrays()[0], jnp.float32), Moments(jnp.zeros(()), jnp.zeros(3), jnp.ones(3))
    grads = [
        jax.jit(jax.grad(lambda x, s=s: (batch_norm(x, running, s)[0] ** 3).sum()))(x)
        for s in (jnp.array([1, 2, 3]), jnp.array([1.0, 2.0, 3.0]))
    ]
    np.testing.assert_allclose(*grads, rtol=1e-6)
