"""Checkpoints of the training state: written whole or not at all, and used only if they are as they were saved."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.cli.errors import UserError
from experiments.cli.program import uninterrupted
from experiments.results.files import write_text
from experiments.results.records import DIGEST_SIZE, Mark, departs
from experiments.training import processes
from experiments.training.steps import TrainState

KEPT = 2
BLOCK = 2**22  # bytes of an array that are looked at together
FILES = "files.json"  # the digests of the other files of a checkpoint


class Restored(NamedTuple):
    """A state, and where the log of the run was when it was saved."""

    state: TrainState
    log: Mark


class DamagedError(Exception):
    """Why a checkpoint cannot be used, as the end of a sentence that begins with the checkpoint."""


class Checkpoints:
    """The last checkpoints of a run.

    Beside the state there is a record in each: what made it, where the log was, and a digest of every array. The record
    has a digest of its own, so that what damaged it is not taken for another run. When all is saved, a digest of every
    file follows: they are compared first, because a reader that meets damage says so in a hundred lines. A process that
    dies before that leaves a checkpoint that is as good, and compared array by array.
    """

    def __init__(self, directory: Path, made_by: Mapping[str, Any], before: Mapping[str, Any] | None = None):
        """`made_by` holds plain values by their names: with others, a checkpoint is of another run.

        A name that a checkpoint does not hold is newer than it is, and had the value in `before`.

        Raises:
          UserError: the folder, or a checkpoint in it, is a link.
        """
        _check_no_links(directory)
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's; what matters of damage is said in a sentence
        self._directory = directory
        self._made_by, self._before = json.loads(json.dumps([dict(made_by), dict(before or {})]))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options, item_handlers=handlers)

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint, if there is one."""
        return self._manager.latest_step()

    @uninterrupted()  # Orbax would leave a part, and its threads would speak of it when all is said
    def save(self, state: TrainState, log: Mark) -> None:
        """Saves `state`; from then on the run's log must begin as it does before `log`."""
        record = {"made_by": self._made_by, "log": log._asdict(), "arrays": digests(state)}
        sealed = ocp.args.JsonSave({**record, "seal": _seal(record)})
        items = ocp.args.Composite(state=ocp.args.StandardSave(_present(state)), record=sealed)
        if not self._manager.save(int(state.step), args=items):
            raise RuntimeError(f"The checkpoint of step {int(state.step)} was not saved.")
        if processes.is_main():
            folder = self._directory / str(int(state.step))
            write_text(folder / FILES, json.dumps(_file_digests(folder)))

    def restore(self, like: TrainState, log: Path, say: Callable[[str], None]) -> Restored | None:
        """The last checkpoint that is whole, with the shapes and the placement of `like`; None if there is none.

        It says what it does not use, and deletes it.

        Raises:
          UserError: none can be used, or one is of another run.
        """
        why: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found = self._whole(step, like, log, why)
            if found is not None:
                for damaged, reason in why.items():
                    say(f"The checkpoint of step {damaged} {reason}: deleted, and the run goes on from step {step}.")
                    self._manager.delete(damaged)
                return found
        if why:
            reasons = "; ".join(f"that of step {step} {reason}" for step, reason in why.items())
            raise UserError(
                f"No checkpoint in `{self._directory}` can be used: {reasons}. Name another `--workdir` to start again."
            )
        return None

    def _whole(self, step: int, like: TrainState, log: Path, why: dict[int, str]) -> Restored | None:
        """The checkpoint of a step, or the reason in `why`; all processes use it or none does."""
        found, reason = None, ""
        if reason := processes.agreed(_damaged_file(self._directory / str(step)) if processes.is_main() else ""):
            why[step] = reason
            return None
        try:
            found = self._checked(step, like, log)
        except DamagedError as error:
            reason = str(error)
        if processes.anywhere(bool(reason)):
            why[step] = reason or "was damaged for another process"
            return None
        return found

    def _checked(self, step: int, like: TrainState, log: Path) -> Restored:
        mark, arrays = self._record(step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _present(like))
        state = like._replace(**self._read(step, state=ocp.args.StandardRestore(abstract)).state)
        if other := [name for name, digest in digests(state).items() if arrays.get(name) != digest]:
            raise DamagedError(f"holds another `{other[0]}` than was saved")
        if int(state.step) != step:
            raise DamagedError(f"is that of step {int(state.step)}")
        if reason := departs(log, mark):
            raise DamagedError(reason)
        return Restored(state, mark)

    def _record(self, step: int) -> tuple[Mark, dict[str, str]]:
        record = self._read(step, record=ocp.args.JsonRestore()).record
        if not isinstance(record, dict) or record.pop("seal", None) != _seal(record):
            raise DamagedError("has not the record that was saved")
        made_by = {**{n: self._before[n] for n in self._made_by if n in self._before}, **record["made_by"]}
        names = sorted({*made_by, *self._made_by})
        if other := [f"`{n}`" for n in names if made_by.get(n) != self._made_by.get(n)]:
            raise UserError(
                f"The checkpoint `{self._directory / str(step)}` is of another run, with other values for "
                f"{', '.join(other)}; remove it, or name another `--workdir`."
            )
        return Mark(**record["log"]), record["arrays"]

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (MemoryError, PermissionError) as error:  # not the checkpoint's fault
            raise UserError(f"The checkpoint `{self._directory / str(step)}` cannot be read: {error}.") from error
        except Exception as error:
            raise DamagedError(f"cannot be read ({type(error).__name__})") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._manager.close()


def _check_no_links(directory: Path) -> None:
    """What is deleted, or written, must not be somewhere else."""
    inside = directory.iterdir() if directory.is_dir() and not directory.is_symlink() else ()
    for file in (directory, *inside):
        if file.is_symlink():
            raise UserError(f"`{file}` must be a folder of the run itself, but it is a link; remove it.")


def _file_digests(folder: Path) -> dict[str, str]:
    files = (f for f in folder.rglob("*") if f.is_file() and f.name != FILES)
    return {f.relative_to(folder).as_posix(): _bytes_digest(f.read_bytes()) for f in files}


def _damaged_file(folder: Path) -> str:
    """Why the files of a checkpoint are not those that were saved, or nothing."""
    try:
        if not (folder / FILES).exists():
            return ""
        saved, found = json.loads((folder / FILES).read_bytes()), _file_digests(folder)
        other = [name for name, digest in saved.items() if found.get(name) != digest]
    except (ValueError, AttributeError, RecursionError):
        other = [FILES]
    return f"has another `{other[0][:200]}` than was saved" if other else ""


def _present(state: TrainState) -> dict[str, Any]:
    """The fields of a state that the run has: a checkpoint from before there were others is as good."""
    return {name: value for name, value in state._asdict().items() if value is not None}


def digests(state: TrainState) -> dict[str, str]:
    """A digest of every array of a state, by its path."""
    return {
        jax.tree_util.keystr(path).lstrip("."): digest(jax.device_get(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def digest(*arrays: np.ndarray) -> str:
    """A digest of the dtypes, shapes and bits of arrays, which may lie on the disk: of some rows at a time."""
    found = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        if not array.shape:
            found.update(array.tobytes())
            continue
        rows = max(1, BLOCK // max(1, math.prod(array.shape[1:]) * array.dtype.itemsize))
        for start in range(0, len(array), rows):
            found.update(np.ascontiguousarray(array[start : start + rows]).tobytes())
    return found.hexdigest()


def _seal(record: Mapping[str, Any]) -> str:
    return _bytes_digest(json.dumps(record, sort_keys=True).encode())


def _bytes_digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE).hexdigest()


def steps_in(directory: Path) -> list[int]:
    """The steps of the checkpoints in a folder, in no order."""
    return [int(f.name) for f in directory.iterdir() if f.name.isdecimal()] if directory.is_dir() else []


def last_arrays(directory: Path) -> dict[str, np.ndarray]:
    """The arrays of the last checkpoint in a folder by their paths, whatever devices they were saved from."""
    path = directory.absolute() / str(max(steps_in(directory))) / "state"
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree)
    arrays = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(name): leaf for name, leaf in jax.tree_util.tree_leaves_with_path(arrays)}


def last_state(directory: Path, like: Any) -> Any:
    """`like` with the parameters and statistics of the last checkpoint in a folder, which is only read.

    Raises:
      UserError: there is none, or it is of another model.
    """
    try:
        arrays = {_plain(name): array for name, array in last_arrays(directory).items()}
        new = {part: _filled(getattr(like, part), part, arrays) for part in ("params", "batch_stats")}
    except (OSError, ValueError, KeyError) as error:
        if not steps_in(directory):
            raise UserError(
                f"There is no checkpoint in `{directory}` yet. A run writes one after each epoch."
            ) from error
        raise UserError(
            f"`{directory}` must hold a checkpoint of this run, but none can be read: {type(error).__name__} {error}."
        ) from error
    return like._replace(**new)


def _filled(tree: Any, part: str, arrays: Mapping[str, Any]) -> Any:
    def array(path: Any, leaf: Any) -> Any:
        found = arrays[f"/{part}{_plain(jax.tree_util.keystr(path))}"]
        if found.shape != leaf.shape:
            raise ValueError(f"an array of shape {found.shape} where the model has {leaf.shape}")
        return jnp.asarray(found, leaf.dtype)

    return jax.tree_util.tree_map_with_path(array, tree)


def _plain(name: str) -> str:
    """`['params'][0]` as `/params/0`, whatever holds it."""
    return re.sub(r"\['?([^'\]]*)'?\]|\.(\w+)", lambda found: f"/{found[1] or found[2]}", name)
