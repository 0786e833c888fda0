"""Devices: meshes of the first of them, and functions spread over them."""

import math

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

OVER_DEVICES = P("d")


def mesh(*shape, names=("d",), kind=AxisType.Auto):
    """Of the first devices, all axes of one kind."""
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=devices)


def sharded(f, devices, in_specs=OVER_DEVICES, out_specs=OVER_DEVICES, check_vma=True):
    """`f` under `shard_map` over so many devices, compiled."""
    specs = {"in_specs": in_specs, "out_specs": out_specs}
    return jax.jit(jax.shard_map(f, mesh=mesh(devices), **specs, check_vma=check_vma))


def same_on_all(tree, axes=1):
    """What all devices have, if it is the same: of arrays whose leading axes are devices."""
    first = (0,) * axes
    jax.tree.map(lambda t: np.testing.assert_array_equal(t, np.broadcast_to(t[first], t.shape)), tree)
    return jax.tree.map(lambda t: t[first], tree)
