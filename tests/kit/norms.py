"""A norm by its name: its modules, a sample for it, and what it must compute, in float64."""

from functools import partial

import jax
import numpy as np
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax import NORMS
from tests.kit import formulas
from tests.kit.comparison import wide
from tests.kit.formulas import ROWS

SHAPE = (4, 3, 2, 6)
STATEFUL = [name for name in ROWS if NORMS[name].takes_running_average]
MASKED = [name for name in ROWS if NORMS[name].mask]
SYNCED = [name for name in ROWS if NORMS[name].sync]
CHANNELS_TOGETHER = ("dbn", "iternorm")  # masks may not vary over channels


def module(name, /, **more):
    return bnjax.linen.make_norm(name, **ROWS[name].options, **more)()


def nnx_module(name, features=6, **more):
    return bnjax.nnx.make_norm(name, features, **ROWS[name].options, rngs=nnx.Rngs(0), **more)


def inputs(name, x):
    return ROWS[name].inputs(len(x))


def when(name, train):
    """What the call of a module is told."""
    return {"use_running_average": not train} if NORMS[name].takes_running_average else {}


def modes(name):
    """The same in training, and at evaluation where there is one."""
    return [when(name, train) for train in (True, False)][: 1 + (name in STATEFUL)]


@partial(jax.jit, static_argnums=(0, 5))
def run(name, x, variables, mask, more, train=True):
    """The norm, by its linen module: output and new state."""
    own = {"mask": mask} if mask is not None else {}
    y, new = module(name).apply(variables, x, **when(name, train), **own, **more, mutable="batch_stats")
    return y, new.get("batch_stats", {})


@partial(jax.jit, static_argnums=0)
def gradients(name, x, g, variables, mask, more):
    """Output, new state, and the gradients of (y * g).sum() to x and the parameters."""

    def loss(x, params):
        y, new = run(name, x, variables | {"params": params}, mask, more)
        return (y * g).sum(), (y, new)

    grads, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(x, variables["params"])
    return y, new, *grads


def sample(name, shape=SHAPE, seed=0, mean=0.5):
    """An input, a cotangent, and variables, none at its start."""
    rng = np.random.default_rng(seed)
    x, g = (rng.normal(size=shape) + mean).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    return x, g, variables_of(module(name), rng, x, **when(name, True))


def variables_of(layer, rng, x, dtype=np.float32, **call):
    """Of a linen module, none at its start."""
    shapes = jax.eval_shape(partial(layer.init, **call), jax.random.key(0), x)

    def away(path, t):
        if t.dtype == np.int32:
            return np.asarray(3, np.int32)
        value = rng.random(t.shape) + 0.5 if path[-1].key != "mean" else rng.normal(size=t.shape)
        return np.asarray(value, dtype)

    return {"params": {}, "batch_stats": {}} | jax.tree_util.tree_map_with_path(away, shapes)


def some_valid(name, shape=SHAPE, seed=1):
    """A mask of this shape with something valid everywhere, and of all channels together where they must be."""
    n = np.random.default_rng(seed).random(shape) < 0.7
    n[..., 0] = n[:, 0, 0] = True
    return np.broadcast_to(n[..., 1:2], shape) if name in CHANNELS_TOGETHER else n


def mask_of(name, n):
    """Such a mask as the norm takes it."""
    return n[..., :1] if name in CHANNELS_TOGETHER else n


def formula(name, x, variables, n=None, train=True, **options):
    """Output and the statistics of the batch."""
    row, n = ROWS[name], np.ones(x.shape) if n is None else n
    p, state = variables["params"], variables["batch_stats"]
    return row.formula(x, p, n, state, train, **{**row.options, **inputs(name, x), **options})


def kept(name, variables, new):
    """The state after a step, if `new` is that of the batch."""
    old = variables["batch_stats"]
    if name == "renorm":  # the root is what is averaged
        root = 0.9 * np.sqrt(old["var"] + 1e-3) + 0.1 * np.sqrt(new["var"] + 1e-3)
        return {"mean": 0.9 * old["mean"] + 0.1 * new["mean"], "var": root**2 - 1e-3, "step": old["step"] + 1}
    return {k: 0.9 * old[k] + 0.1 * np.asarray(new[k]) for k in old}


def stepped(name, x, variables, n=None):
    """Output and new state, by the formula in float64."""
    x, variables = wide((x, variables))
    y, new = formula(name, x, variables, n)
    return y, kept(name, variables, new)


def weighted(name, x, params, g, n, state):
    return (formula(name, x, {"params": params, "batch_stats": state}, n)[0] * g).sum()


@partial(jax.jit, static_argnums=0)
def autodiff(name, *arrays):
    """The gradients of the formula to x and the parameters."""
    return jax.grad(partial(weighted, name), (0, 1))(*arrays)


def expected(name, x, g, variables, n=None):
    """In float64, by the formula: output, state, and gradients; and what `weighted` was differentiated at."""
    n = np.ones(x.shape) if n is None else n
    x, g, variables = wide((x, g, variables))
    y, new = formula(name, x, variables, n)
    state = variables["batch_stats"]
    if name == "renorm":  # whose correction is a constant to the derivative
        limits = {k: ROWS[name].options[k] for k in ("r_max", "d_max")}
        moments = formulas.mean_var(x, n, formulas.batch(x))
        state = state | {"corrections": formulas.corrections(*moments, state, **limits)}
    arrays = x, variables["params"], g, n, state
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):  # the formulas are written for numpy
        dx, dparams = wide(autodiff(name, *arrays))
    return (y, kept(name, variables, new), dx, dparams), arrays
