"""Rules of masks that hold for every norm: how one is read, and what is refused, in functions and in both APIs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax import NORMS, layer_norm
from tests.kit.comparison import assert_close, assert_says, wide
from tests.kit.formulas import ROWS
from tests.kit.norms import MASKED, SHAPE, formula, mask_of, modes, module, sample, some_valid

each = pytest.mark.parametrize("name", MASKED)


# Which masks are refused

REFUSED = {  # the shape of the input, the mask, and what the error says
    "fits the first axes only": (SHAPE, np.ones((4, 3)), ["`{}`", "(4, 3, 2, 6)", "(4, 3)", "`{}[..., None, None]`"]),
    "fits the first and the last axes": (
        (4, 6, 4, 6), np.ones((4, 6), bool), ["`{}`", "(4, 6, 4, 6)", "`{}[..., None, None]`", "`{}[None, None, ...]`"],
    ),
    "fits nowhere": (SHAPE, np.ones((5, 1, 1, 1)), ["`{}`", "(4, 3, 2, 6)", "(5, 1, 1, 1)", "length 1"]),
    "is added to logits": (SHAPE, np.float32([0, -1e9])[:, None], ["`{}`", "-1000000000.0", "`{} == 0`"]),
    "holds a negative integer": (SHAPE, [[[[-1]]]], ["`{}`", "-1", "`{} == 0`"]),
}  # fmt: skip


def in_words_of(name, words):
    return [word.format(name) for word in words]


@pytest.mark.parametrize("name", ROWS)
def test_a_mask_is_refused_in_training_and_at_evaluation(name):
    """In the caller's word, before any work is done. What has no statistics (DyT) looks at its mask, too."""
    linen, variables = module(name), sample(name)[2]
    layer = bnjax.nnx.make_norm(name, 6, **ROWS[name].options, rngs=nnx.Rngs(0))
    for shape, mask, words in REFUSED.values():
        x, more = np.ones(shape, np.float32), ROWS[name].inputs(shape[0])
        for call in modes(name):
            assert_says(
                lambda: linen.apply(variables, x, mask=mask, **call, **more, mutable="batch_stats"),  # noqa: B023
                in_words_of("mask", words),
            )  # fmt: skip
            assert_says(lambda: layer(x, mask=mask, **call, **more), in_words_of("mask", words))  # noqa: B023
        if name in MASKED:
            options = {**ROWS[name].options, **more}
            if NORMS[name].takes_running_average:
                options["running"] = None
            assert_says(lambda: NORMS[name].function(x, where=mask, **options), in_words_of("where", words))  # noqa: B023


def test_what_fits_is_not_refused():
    """Fewer axes that fit the last ones only, lengths of one, and numbers that are not negative."""
    x = jnp.arange(24.0).reshape(4, 3, 2)
    for mask in (np.ones(2), np.ones((1, 1)), True, np.uint8([1, 0]), [[0.5], [0.0], [2.0]], -0.0, np.ones((4, 3, 1))):
        assert np.isfinite(layer_norm(x, where=mask)).all()
    np.testing.assert_array_equal(layer_norm(x, where=np.ones((3, 2))), layer_norm(x, where=np.ones((1, 3, 2))))


@each
def test_masks_may_be_mapped_over_and_a_negative_entry_makes_nan(name):
    """Of a traced mask nothing can be refused: all that is computed with it is NaN, and no wrong number.

    What is masked out is made zero here, but not that.
    """
    x, _, variables = sample(name)
    masks = [mask_of(name, some_valid(name, seed=seed)) for seed in (1, 2)]
    added = np.where(masks[0], 0, -1e9)  # to logits

    @jax.jit
    @jax.vmap
    def f(mask):
        layer = module(name, zero_masked=True)
        call = partial(layer.apply, variables, x, mask=mask, **ROWS[name].inputs(len(x)), mutable="batch_stats")
        return [call(**mode) for mode in modes(name)]

    for train, (y, new) in zip((True, False), f(np.float32([*masks, added])), strict=False):
        for i, mask in enumerate(masks):
            n = np.broadcast_to(mask, SHAPE).astype(np.float64)
            want, _ = formula(name, *wide((x, variables)), n, train)
            assert_close(y[i], np.where(mask, want, 0), 1e-5)
        assert np.isnan(y[2]).all()
        if train:
            stats = {k: v[2] for k, v in new.get("batch_stats", {}).items() if k != "step"}
            assert all(np.isnan(t).all() for t in stats.values())


def test_it_does_so_in_gradients_and_with_integers():
    """As pivots do that differ: a training that goes on with such a mask would go on with NaN."""
    x = jnp.arange(6.0).reshape(2, 3)
    f = jax.jit(jax.grad(lambda x, scale, mask: (layer_norm(x, scale, where=mask) ** 2).sum(), (0, 1)))
    for dtype in (np.int8, np.float16):
        assert all(np.isnan(t).all() for t in f(x, jnp.ones(3), np.array([[0], [-1]], dtype)))
        assert all(np.isfinite(t).all() for t in f(x, jnp.ones(3), np.array([[0], [1]], dtype)))


def test_a_boolean_mask_costs_nothing():
    """Nor does one of unsigned numbers: neither can be negative, so nothing is reduced to look for that."""
    program = jax.make_jaxpr(lambda mask: layer_norm(jnp.ones((2, 3)), where=mask))
    for kind, times in {bool: 0, np.uint8: 0, np.float32: 1}.items():
        assert str(program(np.ones((2, 3), kind))).count("reduce_or") == times
