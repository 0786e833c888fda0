"""Programs in processes of their own, whose interpreter and environment another machine's compiler needs.

Such a process reads its task as JSON from its argument, and prints a JSON record for all that it finds, at once.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]

Record = dict[str, Any]


class FailedError(Exception):
    """The status of a process that failed, and the last line that it said."""

    def __init__(self, status: int, said: str):
        super().__init__(f"ended with {status} ({said})")
        self.said = said


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a process imports what this one imports."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**environment, "PYTHONPATH": path}


def records_of(
    module: str, task: Mapping[str, Any], python: str, environment: Mapping[str, str], errors: IO[str]
) -> Iterator[Record]:
    """What `python -m module` finds for a task, as it is found. What else it says goes to the file `errors`.

    Raises:
      FailedError: it ended with another status than 0.
    """
    with subprocess.Popen(
        [python, "-m", module, json.dumps(task)],
        env=child_environment(environment), stdout=subprocess.PIPE, stderr=errors, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        errors.seek(0)
        said = errors.read().strip().splitlines()
        raise FailedError(process.returncode, said[-1] if said else "nothing was said")


def run_child(main: Callable[[Record], Iterable[Record]]) -> None:
    """The other side: gives `main` the task of this process, and prints what it yields."""
    for found in main(json.loads(sys.argv[1])):
        print(json.dumps(found), flush=True)
