"""Helpers for data parallelism under `jit`: a mesh, the sharding of a batch, a state on every device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax._collectives.psum import AxisName


def data_mesh(num_devices: int | None = None, axis_name: str = "data") -> Mesh:
    """A mesh of one Auto axis over the first `num_devices` devices, or all.

    Equivalent to `jax.make_mesh((num_devices,), (axis_name,), axis_types=(AxisType.Auto,))`: `jax.make_mesh` makes
    Explicit axes by default, where every array has to say how it is sharded.

    Raises:
      ValueError: more `num_devices` than there are.

    >>> dict(data_mesh(1).shape)
    {'data': 1}
    """
    devices = jax.devices()
    n = len(devices) if num_devices is None else num_devices
    if not isinstance(n, int | np.integer) or not 1 <= n <= len(devices):
        raise ValueError(f"`num_devices` must be from 1 to {len(devices)}, the devices there are, but it is {n!r}.")
    return jax.make_mesh((int(n),), (axis_name,), axis_types=(AxisType.Auto,), devices=devices[:n])


def batch_sharding(mesh: Mesh, axis_name: AxisName | None = None) -> NamedSharding:
    """The sharding of arrays whose axis 0 is the batch, for `jax.device_put` or as one of `in_shardings`.

    Equivalent to `NamedSharding(mesh, P(axis_name))`.

    Args:
      mesh: of devices.
      axis_name: the axis of the mesh, or a tuple of several, that the batch is split over; all by default.

    Raises:
      ValueError: a name that is not of the mesh.

    >>> batch_sharding(data_mesh(1)).spec
    P('data',)
    """
    names = mesh.axis_names if axis_name is None else axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if unknown := [name for name in names if name not in mesh.axis_names]:
        raise ValueError(f"`axis_name` must name axes of the mesh, {mesh.axis_names}, but {unknown} are not.")
    return NamedSharding(mesh, P(names[0] if len(names) == 1 else tuple(names)))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` (parameters, running statistics, an optimizer's state) with a copy of every leaf on every device.

    Equivalent to `jax.device_put(tree, NamedSharding(mesh, P()))`.

    >>> replicate({"mean": jnp.zeros(2)}, data_mesh(1))["mean"].sharding.spec
    P()
    """
    return jax.device_put(tree, NamedSharding(mesh, P()))
