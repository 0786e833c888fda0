"""How results are compared: with what tolerance, and relative to what."""

import jax
import numpy as np

from tests.kit import references


def wide(tree):
    """The arrays of a tree in float64 or complex128."""
    return jax.tree.map(references.wide, tree)


def differences(loss, arguments, h=1e-5):
    """The gradients of `loss`, good to 1e-9, by central differences."""
    gradients = jax.tree.map(np.zeros_like, arguments)
    for t, slope in zip(jax.tree.leaves(arguments), jax.tree.leaves(gradients), strict=True):
        for i in np.ndindex(t.shape):
            here, ends = t[i], []
            for t[i] in (here - h, here + h):
                ends.append(loss(*arguments))
            t[i], slope[i] = here, (ends[1] - ends[0]) / (2 * h)
    return gradients


def assert_close(got, want, tolerance=5e-6, floor=1e-3):
    """Each array of `want`, relative to its largest entry, or to the floor."""
    got, want = dict(jax.tree_util.tree_leaves_with_path(got)), dict(jax.tree_util.tree_leaves_with_path(want))
    for path, w in want.items():
        t = np.asarray(got[path], np.float64)
        np.testing.assert_allclose(
            t, w, rtol=0, atol=tolerance * max(np.abs(w).max(initial=0), floor), err_msg=str(path)
        )


def assert_each_close(got, want, rtol=1e-5, atol=3e-6):
    """Arrays, one by one."""
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol, atol)


def assert_trees_close(got, want, rtol, atol):
    """The same tree, and close arrays."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol, atol), got, want)


def assert_alike(got, want):
    """The same tree, shapes and dtypes."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), jax.tree_util.keystr(path)


def assert_says(call, words):
    """The call is refused, with a `ValueError` that names an argument and has these words."""
    said = ""
    try:
        call()
    except ValueError as error:
        said = str(error)
    for word in ("`", *words):
        assert word in said, f"{word!r} is not in: {said or 'nothing'}"


def errors(got, want):
    """Of each array, relative to its largest entry."""
    return np.array([references.relative(g, w) for g, w in zip(got, want, strict=True)])
