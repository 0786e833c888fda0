"""The processes of a group meet before JAX joins them, and find out whether all are there and do the same.

JAX's own joining knows no such errors: where nobody comes, or a port is taken, C++ ends the process with a stack trace.
"""

import dataclasses
import errno
import json
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any

from experiments.cli.errors import UserError

LONGEST = 2**16  # bytes of what a process says
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where process 0 listens."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> "Place":
        """The place in HOST:PORT.

        Raises:
          UserError: it is not of that form.

        >>> Place.of("[::1]:80")
        Place(host='::1', port=80)
        """
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (host and port.isdecimal() and len(port) < 6 and 0 < int(port) < 2**16):
            raise UserError(f"`--distributed.coordinator` must be HOST:PORT, but it is {text!r}.")
        return cls("127.0.0.1" if host == "localhost" else host, int(port))

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Greeting:
    """What a process says of itself."""

    process: int
    processes: int
    facts: Mapping[str, Any]  # what all must have alike, as JSON has it

    def line(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def meet(place: Place, me: Greeting, timeout: float) -> None:
    """Returns when all processes are there and have the same facts. The port of `place` is free then.

    Raises:
      UserError: a port that is taken, a host that is not known, processes that do not come in time, or other facts.
    """
    end = time.monotonic() + timeout
    if me.process == 0:
        _receive(place, me, timeout, end)
    elif problem := _greet(place, me, timeout, end):
        raise UserError(problem)


def disagreement(facts: Mapping[int, Any]) -> str:
    """A sentence that names what processes have otherwise than process 0; empty where there is nothing."""
    flat = {process: _flat(f) for process, f in facts.items()}
    for process, values in sorted(flat.items()):
        if other := [f"`{n}`" for n in sorted({*values, *flat[0]}) if values.get(n) != flat[0].get(n)]:
            return (
                f"Process {process} has other values than process 0 for {', '.join(other)}; all processes of a group "
                "must be given the same."
            )
    return ""


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {k: v for name, part in tree.items() for k, v in _flat(part, f"{path}.{name}" if path else name).items()}


def _receive(place: Place, me: Greeting, timeout: float, end: float) -> None:
    """Process 0: waits for all others, and tells all of them what it thinks of that."""
    with _listen(place) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        said: dict[socket.socket, bytes] = {}
        problem = ""
        try:
            while not problem and len(_members(said)) < me.processes - 1:
                if not (ready := selector.select(end - time.monotonic())) or time.monotonic() > end:
                    problem = _missing(place, me, said, timeout)
                for key, _ in ready:
                    _hear(key.fileobj, listener, selector, said)  # type: ignore[arg-type]
            problem = problem or _problem([me, *_members(said)])
            for guest in said:
                _answer(guest, problem)
        finally:
            for guest in said:
                guest.close()
    if problem:
        raise UserError(problem)


def _listen(place: Place) -> socket.socket:
    """A loopback address is no place for others; of another one, whatever reaches this machine."""
    try:
        family = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0][0]
        if place.is_local:
            return socket.create_server((place.host, place.port), family=family)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", place.port), family=family, dualstack_ipv6=both)
    except socket.gaierror as error:
        raise UserError(_unknown(place, error)) from error
    except OSError as error:
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UserError(
            f"`--distributed.coordinator` must name a free port of process 0, but {place} {why}."
        ) from error


def _hear(
    source: socket.socket, listener: socket.socket, selector: selectors.BaseSelector, said: dict[socket.socket, bytes]
) -> None:
    if source is listener:
        guest, _ = listener.accept()
        said[guest] = b""
        selector.register(guest, selectors.EVENT_READ)
        return
    try:
        said[source] += (more := source.recv(LONGEST))
    except OSError:
        more = b""
    if not more or len(said[source]) > LONGEST:  # it has gone, or is none of us
        selector.unregister(source)
        del said[source]
        source.close()


def _members(said: Mapping[socket.socket, bytes]) -> list[Greeting]:
    """Who has greeted, in the order of their coming; what is not a greeting is overheard."""
    members = []
    for line in said.values():
        try:
            greeting = Greeting(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        if type(greeting.process) is type(greeting.processes) is int and isinstance(greeting.facts, dict):
            members.append(greeting)
    return members


def _missing(place: Place, me: Greeting, said: Mapping[socket.socket, bytes], timeout: float) -> str:
    there = {member.process for member in _members(said)}
    missing = [str(i) for i in range(1, me.processes) if i not in there]
    which = f"process{'es' if len(missing) > 1 else ''} {', '.join(missing)} of {me.processes} did not come to {place}"
    return f"Within {timeout:g} s {which}; start all of them, or give a longer `--distributed.timeout`."


def _problem(members: list[Greeting]) -> str:
    for member in members:
        if member.processes != members[0].processes:
            return (
                f"Process {member.process} has `--distributed.num_processes={member.processes}`, but process 0 has "
                f"{members[0].processes}."
            )
    numbers = [member.process for member in members]
    if twice := [i for i in numbers if numbers.count(i) > 1]:
        return f"`--distributed.process_id` must be another one in every process, but several have {twice[0]}."
    return disagreement({member.process: member.facts for member in members})


def _answer(guest: socket.socket, problem: str) -> None:
    """Says it, and lets the guest leave first: the port of who does is not free at once."""
    try:
        guest.settimeout(1)
        guest.sendall(json.dumps({"problem": problem}).encode() + b"\n")
        while guest.recv(LONGEST):
            pass
    except OSError:
        return


def _greet(place: Place, me: Greeting, timeout: float, end: float) -> str:
    """Any other process: goes to process 0 as soon as it is there, and returns what it says."""
    why = "nobody answers"
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((place.host, place.port), timeout=left) as host:
                host.settimeout(timeout + 1)  # process 0 was there before, and answers when its own time is up
                return _heard(place, host, me)
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN:
                return _unknown(place, error)
            why = error.strerror or why
        except TimeoutError:
            continue
        except OSError as error:
            why = error.strerror or why
        time.sleep(min(0.05, left))
    return (
        f"Within {timeout:g} s process {me.process} was not let in by process 0 at {place} ({why}); start all "
        "processes, or give a longer `--distributed.timeout`."
    )


def _heard(place: Place, host: socket.socket, me: Greeting) -> str:
    host.sendall(me.line())
    answer = b""
    while not answer.endswith(b"\n") and len(answer) < LONGEST and (more := host.recv(LONGEST)):
        answer += more
    if not answer:
        raise ConnectionResetError(errno.ECONNRESET, "it has left")
    try:
        return str(json.loads(answer)["problem"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"`--distributed.coordinator` must name process 0, but at {place} there is another program."


def _unknown(place: Place, error: OSError) -> str:
    return (
        f"`--distributed.coordinator` must name a host that is known here, but {place.host!r} is not: {error.strerror}."
    )
