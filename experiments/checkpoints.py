"""Checkpoints of the training state: written whole or not at all, the last one is kept."""

from pathlib import Path
from types import TracebackType

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.steps import TrainState


class Checkpoints:
    """The checkpoints in a folder."""

    def __init__(self, directory: Path):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The step of the last whole checkpoint, if there is one."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        self._manager.save(int(state.step), args=ocp.args.StandardSave(state))

    def restore(self, like: TrainState) -> TrainState:
        """The state of the last checkpoint, with the shapes and the placement of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(self.latest, args=ocp.args.StandardRestore(abstract))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._manager.close()


def last_arrays(directory: Path) -> dict[str, np.ndarray]:
    """The arrays of the last whole checkpoint in a folder by their paths, whatever devices they were saved from."""
    steps = [int(f.name) for f in directory.iterdir() if f.name.isdecimal()]
    path = directory.absolute() / str(max(steps)) / "default"
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree)
    arrays = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(name): leaf for name, leaf in jax.tree_util.tree_leaves_with_path(arrays)}
