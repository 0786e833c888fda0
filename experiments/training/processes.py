"""One process or many: how they find each other, which of them writes, and what they must agree on."""

import collections
import contextlib
import dataclasses
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.cli.errors import UserError
from experiments.cli.schema import Count, Range
from experiments.config import Config
from experiments.training.meeting import LONGEST, Greeting, Place, disagreement, meet

HEARTBEAT = 30  # seconds of silence after which a process is taken for dead, where nobody watches the group


@dataclasses.dataclass(frozen=True)
class Distributed:
    """The group of processes that this one belongs to; tasks of SLURM and Open MPI find theirs by themselves."""

    coordinator: str = ""  # HOST:PORT, where process 0 can be reached
    num_processes: Count | None = None
    process_id: Annotated[int, Range(low=0)] | None = None  # of this one, from 0
    detect: bool = False  # join the group that JAX detects: TPU pods, Kubernetes
    timeout: Annotated[int, Range(low=1, high=3600)] = 30  # seconds for all processes to come together


def start(config: Config, group: Distributed | None = None, resume: bool = False) -> None:
    """Sets JAX up as it is told, before its first use, and joins the other processes of the group, if there are any.

    Raises:
      UserError: a group that is not all said, or not found, or whose processes are not told the same; devices when it
        is too late for them.
    """
    if group is not None:
        _check(group)
    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if config.parallel.fake_devices is not None:
        _fake(config.parallel.fake_devices)
    facts = {"config": dataclasses.asdict(config), "resume": resume}
    if group is not None and group.coordinator:
        _join_at(Place.of(group.coordinator), group, json.loads(json.dumps(facts)))
    elif group is not None and (group.detect or _tasks() > 1):
        _join(group, {})
        _compare(facts)


def _join_at(place: Place, group: Distributed, facts: Mapping[str, Any]) -> None:
    """Joins the group of which process 0 is at `place`, once all are there and are told the same."""
    assert group.process_id is not None
    assert group.num_processes is not None
    meet(place, Greeting(group.process_id, group.num_processes, facts), group.timeout)
    local: dict[str, Any] = {
        "coordinator_bind_address": str(place),  # not every address of the machine
        "local_device_ids": group.process_id,  # on GPUs, each has the one of its number, as under SLURM and Open MPI
    }
    _join(group, {"coordinator_address": str(place), **(local if place.is_local else {})})


def _join(group: Distributed, where: Mapping[str, Any]) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # or SIGTERM would be swallowed
    try:
        with _within(group.timeout):
            jax.distributed.initialize(
                num_processes=group.num_processes,
                process_id=group.process_id,
                initialization_timeout=2 * group.timeout,  # later than `_within`: it ends in a stack trace
                heartbeat_timeout_seconds=HEARTBEAT,
                **where,
            )
    except ValueError as error:
        raise UserError(
            f"JAX detects no group of processes ({error}); give `--distributed.coordinator=HOST:PORT`, "
            "`--distributed.num_processes` and `--distributed.process_id`."
        ) from error


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Ends the process with a sentence where what it does takes longer: JAX's own timeout is no exception to catch."""

    def give_up() -> NoReturn:
        print(
            f"error: JAX did not bring the group of processes together within {seconds} s; start all of them, or give "
            "a longer `--distributed.timeout`.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _compare(facts: Mapping[str, Any]) -> None:
    """Where JAX finds the others, they are compared afterwards."""
    if jax.process_count() == 1:
        return
    devices = collections.Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        raise UserError(f"All processes must have as many devices, but they have {sorted(devices.values())}.")
    text = np.frombuffer(json.dumps(facts).encode().ljust(LONGEST, b" "), np.uint8)
    all_facts = [json.loads(bytes(row)) for row in multihost_utils.process_allgather(text)]
    if problem := disagreement(dict(enumerate(all_facts))):
        raise UserError(problem)


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def agreed(text: str) -> str:
    """What process 0 has in the place of `text`."""
    if jax.process_count() == 1:
        return text
    letters = np.frombuffer(text.encode().ljust(4096, b"\0"), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(letters)).rstrip(b"\0").decode()


def anywhere(flag: bool) -> bool:
    """Whether `flag` is true in any of the processes."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


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
    if group.coordinator:
        Place.of(group.coordinator)
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


def _tasks() -> int:
    """How many processes SLURM or Open MPI started; 1 also in a shell inside of an allocation."""
    slurm = "SLURM_STEP_NODELIST" in os.environ and "SLURM_PROCID" in os.environ
    return int(os.environ.get("SLURM_NTASKS", 1) if slurm else os.environ.get("OMPI_COMM_WORLD_SIZE", 1))
