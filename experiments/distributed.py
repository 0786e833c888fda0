"""One process or many: how they find each other, which of them writes, and what they must agree on."""

import dataclasses
import os
from typing import Annotated

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.config import Config
from experiments.errors import UserError
from experiments.schema import Count, Range

HEARTBEAT = 30  # seconds of silence after which a process is taken for dead, where nobody watches the group


@dataclasses.dataclass(frozen=True)
class Distributed:
    """The group of processes that this one belongs to; tasks of SLURM and Open MPI find theirs by themselves."""

    coordinator: str = ""  # HOST:PORT, where process 0 can be reached
    num_processes: Count | None = None
    process_id: Annotated[int, Range(low=0)] | None = None  # of this one, from 0
    detect: bool = False  # join the group that JAX detects: TPU pods, Kubernetes


def start(config: Config, group: Distributed | None = None) -> None:
    """Sets JAX up as it is told, before its first use, and joins the other processes of the group, if there are any.

    Raises:
      UserError: a group that is not all said, or not found; devices when it is too late for them.
    """
    if group is not None:
        _check(group)
    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if config.parallel.fake_devices is not None:
        _fake(config.parallel.fake_devices)
    if group is not None and (group.coordinator or group.detect or _tasks() > 1):
        _join(group)


def _join(group: Distributed) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # or SIGTERM would be swallowed
    try:
        jax.distributed.initialize(
            group.coordinator or None,
            group.num_processes,
            group.process_id,
            # Several processes on one machine: each has the GPU of its number, as under SLURM and Open MPI.
            local_device_ids=group.process_id if _is_local(group.coordinator) else None,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:
        raise UserError(
            f"JAX detects no group of processes ({error}); give `--distributed.coordinator=HOST:PORT`, "
            "`--distributed.num_processes` and `--distributed.process_id`."
        ) from error


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def agreed(text: str) -> str:
    """What process 0 has in the place of `text`."""
    if jax.process_count() == 1:
        return text
    letters = np.frombuffer(text.encode().ljust(4096, b"\0"), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(letters)).rstrip(b"\0").decode()


def wait(where: str) -> None:
    """Waits until all processes are `where`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _check(group: Distributed) -> None:
    said = (bool(group.coordinator), group.num_processes is not None, group.process_id is not None)
    if any(said) and not all(said):
        raise UserError(
            "`--distributed.coordinator`, `--distributed.num_processes` and `--distributed.process_id` belong "
            "together; give all of them, or none where SLURM or Open MPI starts the processes."
        )
    if group.coordinator and not group.coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"`--distributed.coordinator` must be HOST:PORT, but it is {group.coordinator!r}.")
    if group.num_processes is not None and group.process_id is not None and group.process_id >= group.num_processes:
        raise UserError(
            f"`--distributed.process_id` must be less than `--distributed.num_processes`, {group.num_processes}, "
            f"but it is {group.process_id}."
        )


def _fake(devices: int) -> None:
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        if jax.local_device_count() != devices:
            raise UserError(
                f"`config.parallel.fake_devices` must be set before the first use of JAX; it is {devices} now, but "
                f"this process has {jax.local_device_count()} devices already."
            ) from error


def _is_local(coordinator: str) -> bool:
    return coordinator.rpartition(":")[0] in ("127.0.0.1", "localhost")


def _tasks() -> int:
    """How many processes SLURM or Open MPI started; 1 also in a shell inside of an allocation."""
    slurm = "SLURM_STEP_NODELIST" in os.environ and "SLURM_PROCID" in os.environ
    return int(os.environ.get("SLURM_NTASKS", 1) if slurm else os.environ.get("OMPI_COMM_WORLD_SIZE", 1))
