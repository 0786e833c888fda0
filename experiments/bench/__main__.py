"""The benchmark: `python -m experiments.bench`, `--quick` for a first look, `--help` for what else there is."""

from collections.abc import Sequence

from experiments.bench import options
from experiments.cli.program import run_main


def main(argv: Sequence[str]) -> None:
    arguments = options.parse(argv)
    options.restart(arguments.buffers)
    from experiments.bench.run import bench  # only now: JAX and its peers read the environment when imported

    bench(arguments)


if __name__ == "__main__":
    run_main(main)
