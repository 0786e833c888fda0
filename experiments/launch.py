"""Starts a group of training processes on this machine: `python -m experiments.launch --processes 2 -- --config=...`.

What comes after `--` are the arguments of `experiments.train`. Every line that a process says is shown with its
number; when one of them dies, all are ended, and it is named. They end with this program, too, whatever ends it.
"""

import dataclasses
import signal
from collections.abc import Sequence
from typing import Annotated

from experiments.cli.errors import UserError
from experiments.cli.flags import apart, parse_flags
from experiments.cli.program import run_main
from experiments.cli.schema import Range
from experiments.training.launcher import commands, run


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train with several processes on this machine. The arguments of `experiments.train` come after `--`."""

    processes: Annotated[int, Range(low=1, high=1024)] = 2


def main(argv: Sequence[str]) -> int:
    own, arguments = apart(argv)
    if not arguments and not {"--help", "-h"} & set(own):
        raise UserError("The arguments of `experiments.train` must come after `--`, for example `-- --config=...`.")
    parsed = parse_flags(Arguments, own, "python -m experiments.launch", __doc__)
    return run(commands(parsed.processes, arguments))


if __name__ == "__main__":
    run_main(main, signal.SIGTERM, signal.SIGHUP)
