"""How a step is spread over devices: written once, for one part of the batch, it runs in four layouts."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bnjax
from bnjax import Moments
from experiments.cli.errors import UserError
from experiments.config import Config
from experiments.data import Share
from experiments.models.norms import hands_out_moments

AXES = {  # of the mesh: the members of a group measure together
    "global": ("member",),
    "device": ("group",),
    "group": ("group", "member"),
}
_WHOLE = P()

Step = Callable[[Any, Mapping[str, Array]], Any]  # of the state and one part of the batch; results alike in all parts


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices, who measures together, and how a step comes to run on all of them.

    A step is written for one part of the batch and calls `total` and `pooled` for what the other parts know. Under
    `jit` there is one part: the batch is one array, whatever holds it, and groups are slices of it.
    """

    kind: Literal["jit", "shard_map", "pmap", "vmap"]
    mesh: Mesh
    accumulate: int = 1
    seeds: int | None = None
    """How many runs lie side by side, along a first axis of the states and the batches; None: one, without that axis.

    Under `jit` and `shard_map` alone.
    """

    @property
    def whole(self) -> NamedSharding:
        """How the state lies on the devices: whole on each of them."""
        return NamedSharding(self._line if self.kind == "pmap" else self.mesh, _WHOLE)

    def split(self, alike: bool = False) -> NamedSharding:
        """How a batch lies on the devices; `alike`: the same for all runs."""
        rows = bnjax.batch_sharding(self.mesh)
        return rows if self.seeds is None or alike else NamedSharding(self.mesh, P(None, *rows.spec))

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the mesh's axes."""
        return self.mesh.axis_names

    def norm(self, rows: int) -> dict[str, Any]:
        """The arguments with which a norm measures the group and no more, in batches of so many rows."""
        if self.kind == "jit":
            sliced = "group" in self.axes
            return {"virtual_batch_size": rows // self.accumulate // self.mesh.shape["group"]} if sliced else {}
        if "member" not in self.axes:
            return {}
        if self.kind != "pmap":
            return {"axis_name": "member"}
        table = np.arange(self.mesh.size).reshape(-1, self.mesh.shape["member"])
        return {"axis_name": "device", "axis_index_groups": tuple(tuple(map(int, row)) for row in table)}

    def total(self, tree: Any) -> Any:
        """Sums over all parts."""
        return tree if self.kind == "jit" else lax.psum(tree, "device" if self.kind == "pmap" else self.axes)

    def own(self, tree: Any) -> Any:
        """What is alike in all parts, as each part's own: gradients to it are of that part alone."""
        return lax.pcast(tree, self.axes, to="varying") if self.kind == "shard_map" else tree

    def accumulated(self, f: Callable[[Any], Any], batch: Any) -> Any:
        """`f(batch)`, sums and `Moments`, from one micro-batch after the other."""
        k = self.accumulate
        if k == 1:
            return f(batch)
        return jax.tree.map(lambda t: t if is_moments(t) else k * t, bnjax.accumulate(f, batch, k), is_leaf=is_moments)

    def pooled(self, moments: Any) -> Any:
        """The moments of every norm, of the group's examples, merged into those of all examples: two all-reduces."""
        if self.kind == "jit" or "group" not in self.axes:
            return moments
        plain = jax.tree.map(lambda m: Moments(m.count, m.mean, m.var), moments, is_leaf=is_moments)
        # `pmap` has all devices in a line, and groups have equally many: each counts as often.
        merged = bnjax.sync_batch_stats(plain, "device" if self.kind == "pmap" else "group")
        return jax.tree.map(lambda m, new: dataclasses.replace(m, **vars(new)), moments, merged, is_leaf=is_moments)

    def spread(self, step: Step, donate: bool = False, alike: bool = False) -> Any:
        """`step`, compiled for all devices: of the state, whole on each of them, and of what `place` makes."""
        donated, split = (0,) if donate else (), self.split(alike)
        if self.seeds is not None:
            step = jax.vmap(step, in_axes=(0, None if alike else 0))
        if self.kind == "pmap":
            return self._pmap(step, donated)
        if self.kind == "shard_map":
            step = jax.shard_map(step, mesh=self.mesh, in_specs=(_WHOLE, split.spec), out_specs=_WHOLE)
        elif self.kind == "vmap":
            step = self._vmap(step)
        return jax.jit(step, in_shardings=(self.whole, split), out_shardings=self.whole, donate_argnums=donated)

    def place(self, batch: Mapping[str, np.ndarray], alike: bool = False) -> Any:
        """The rows of a batch that this process has (see `share`), on its devices."""
        if self.kind == "pmap":
            local = self.mesh.local_mesh.size
            return {name: t.reshape(local, -1, *t.shape[1:]) for name, t in batch.items()}
        return {name: jax.make_array_from_process_local_data(self.split(alike), t) for name, t in batch.items()}

    def share(self, size: int, accumulate: int = 1) -> Share:
        """Which rows this process has of a batch of `size`, filled up so that every part has as many."""
        parts = self.mesh.size
        rows = math.ceil(size / (parts * accumulate)) * parts * accumulate
        mine = [i for i, d in enumerate(self.mesh.devices.flat) if d.process_index == jax.process_index()]
        return Share(rows, min(mine) * rows // parts, (max(mine) + 1) * rows // parts)

    @property
    def _line(self) -> Mesh:
        """The devices in a line, as `pmap` has them."""
        return Mesh(self.mesh.devices.reshape(-1), "device")

    def _vmap(self, step: Step) -> Step:
        """The parts are rows of a table, and the compiler puts them on devices."""
        for axis in reversed(self.axes):
            step = jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=axis)
        table = self.mesh.devices.shape
        return lambda state, batch: step(state, {k: t.reshape(*table, -1, *t.shape[1:]) for k, t in batch.items()})

    def _pmap(self, step: Step, donated: tuple[int, ...]) -> Callable[..., Any]:
        devices = list(self.mesh.devices.flat)
        mapped = jax.pmap(step, "device", in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=donated)
        if jax.process_count() == 1:
            return mapped

        def on_many(state: Any, batch: Any) -> Any:  # where `pmap` takes and gives each process's own copy
            local = multihost_utils.global_array_to_host_local_array(state, self._line, _WHOLE)
            return multihost_utils.host_local_array_to_global_array(mapped(local, batch), self._line, _WHOLE)

        return on_many


def is_moments(tree: Any) -> bool:
    """Whether this node of a tree is one measurement."""
    return isinstance(tree, Moments)


def make_layout(config: Config, devices: Sequence[jax.Device] | None = None) -> Layout:
    """The layout of a config on `devices`, all that there are by default.

    Raises:
      UserError: groups that do not fit the devices, or too few examples to measure.
    """
    parallel, accumulate = config.parallel, config.train.accumulate
    devices = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
    if (parallel.sync == "group") != (parallel.group_size is not None):
        raise UserError(
            "`config.parallel.group_size`, the number of devices that are measured together, belongs to "
            f"`--config.parallel.sync=group`; it is {parallel.group_size} with `sync={parallel.sync}`."
        )
    if parallel.group_size is not None and len(devices) % parallel.group_size:
        raise UserError(
            "`config.parallel.group_size` must divide the number of devices, "
            f"{len(devices)}, but it is {parallel.group_size}."
        )
    shape = (len(devices),) if parallel.group_size is None else (-1, parallel.group_size)
    layout = Layout(parallel.layout, Mesh(np.array(devices).reshape(shape), AXES[parallel.sync]), accumulate)
    _check_rows(layout, config)
    return layout


def _check_rows(layout: Layout, config: Config) -> None:
    size, accumulate = config.train.batch_size, layout.accumulate
    if accumulate > size:
        raise UserError(f"`config.train.accumulate` must be at most the batch size, {size}, but it is {accumulate}.")
    groups = layout.mesh.shape.get("group", 1)
    rows = layout.share(size, accumulate).rows // accumulate // groups
    if not hands_out_moments(config.model) and (accumulate > 1 or groups > 1):
        raise UserError(
            f"`config.model.norm={config.model.norm}` keeps more than moments: `--config.train.accumulate=1` and "
            "`--config.parallel.sync=global` are all it can do."
        )
    if config.model.norm == "ghost":
        _check_slices(layout, config)
    if config.model.norm != "none" and rows < 2:
        raise UserError(
            f"`config.train.batch_size` must leave two examples to be measured together, but {size} in "
            f"{accumulate} micro-batches on {groups} groups of devices leave {rows}; use a larger "
            "batch, fewer micro-batches, or `--config.parallel.sync=global`."
        )


def _check_slices(layout: Layout, config: Config) -> None:
    sync, size = config.parallel.sync, config.model.ghost_size
    if sync != "global":
        raise UserError(
            "`config.model.norm=ghost` has slices of its own, in the place of which "
            f"`sync={sync}` puts what its devices have. Write `--config.parallel.sync=global` for slices of "
            f"{size} examples, or `--config.model.norm=batch` for those of `sync={sync}`."
        )
    parts = 1 if layout.kind == "jit" else layout.mesh.size  # by name, a slice stays on its device
    rows = layout.share(config.train.batch_size, layout.accumulate).rows // layout.accumulate // parts
    if rows % size:
        where = "micro-batch" if layout.accumulate > 1 else "batch"
        each = f" on each of {parts} devices" if parts > 1 else ""
        instead = "; under `--config.parallel.layout=jit` slices may span devices" if parts > 1 else ""
        raise UserError(
            f"`config.model.ghost_size` must divide the {rows} examples of a {where}{each}, but it is {size}{instead}."
        )
