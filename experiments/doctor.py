"""What is wrong with the norms of a run: `python -m experiments.doctor --run=runs/NAME`.

The last checkpoint is examined with batches of the training data, as large as those that it was trained with. The
folder of the run gets doctor.json and doctor.png; all else in it stays as it is.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import jax

from experiments.cli.errors import UserError
from experiments.cli.flags import parse_flags
from experiments.cli.program import run_main
from experiments.cli.schema import Range
from experiments.config import Config, ParallelConfig
from experiments.config.file import load
from experiments.data import Batch, Data, batches, check_sizes, epoch_order, load_data
from experiments.results.files import write_text
from experiments.training import run
from experiments.training.checkpoints import last_state


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Examine the norms of a run."""

    run: str = ""
    """The folder of the run."""
    batches: Annotated[int, Range(low=1, high=10_000)] = 10
    """How many batches of the training data are looked at, at most."""


def main(argv: Sequence[str]) -> None:
    arguments = parse_flags(Arguments, argv, "python -m experiments.doctor", __doc__)
    folder = Path(arguments.run)
    if not arguments.run or not (folder / "config.json").is_file():
        raise UserError(f"`--run` must be the folder of a run, with its `config.json`, but it is `{arguments.run}`.")
    config = load(str(folder / "config.json"))
    config = dataclasses.replace(config, parallel=ParallelConfig())  # one device, whatever it was trained on
    data = load_data(config.data)
    check_sizes(config, data)
    program = run.program_of(config, data)
    state = last_state(folder / run.CHECKPOINTS, jax.eval_shape(program.init, jax.random.key(0)))
    diagnosis = program.examine(state, itertools.islice(whole_batches(config, data), arguments.batches))
    print(diagnosis)
    write_text(folder / "doctor.json", diagnosis.to_json() + "\n")
    made = ["doctor.json"]
    if any(norm.measured for norm in diagnosis.norms):
        diagnosis.plot(folder / "doctor.png")
        made.append("doctor.png")
    print(f"\nWritten: {', '.join(str(folder / name) for name in made)}.")


def whole_batches(config: Config, data: Data) -> Iterator[Batch]:
    """The batches of an epoch that are not filled up; where a step took several, each by itself, as norms saw them."""
    order = epoch_order(config.seed, config.train.epochs, len(next(iter(data.train.values()))))
    return (
        b for b in batches(data.train, config.train.batch_size // config.train.accumulate, order) if b["mask"].all()
    )


if __name__ == "__main__":
    run_main(main)
