"""Configs: read from Python and JSON, overridden on the command line, refused with a sentence before any work."""

import dataclasses
import json
from pathlib import Path

import pytest

import experiments.faults.__main__ as faults
import experiments.scale.__main__ as scale
from experiments import compare, docs, launch, numerics, train
from experiments.bench import options
from experiments.cli.errors import UserError
from experiments.cli.flags import parse_flags
from experiments.cli.program import run_main
from experiments.cli.schema import build, differences, rebuild
from experiments.config import Config, ModelConfig, OptimizerConfig, ParallelConfig
from experiments.config.arguments import parse
from experiments.config.file import load, to_json

DIGITS = "configs/digits_cnn.py"


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a program that must end with status 2 and without having begun; returns what it says, on one line."""

    def started(*_):
        raise AssertionError("work has begun")

    monkeypatch.setattr(train, "load_data", started)
    monkeypatch.setattr(compare, "load_data", started)

    def run(program, *argv):
        monkeypatch.setattr("sys.argv", ["program", *map(str, argv)])
        with pytest.raises(SystemExit) as end:
            run_main(program.main)
        said = capsys.readouterr().err
        assert end.value.code == 2, said
        assert "Traceback" not in said
        return " ".join(word for word in said.split() if word != "│")  # tyro draws a box

    return run


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "`--config` must name a config file"),
        (["--config"], "`--config` must be followed by a value"),
        (["--config=configs/digit_cnn.py"], "Did you mean `configs/digits_cnn.py`?"),
        (["--config=configs/digits_cnn"], "Did you mean `configs/digits_cnn.py`?"),
        (["--config", DIGITS, "--config.optimizer.learning_rat=1"], "--config.optimizer.learning_rate FLOAT"),
        (["--config", DIGITS, "--config.modle.norm=none"], "--config.model.norm {none,batch"),
        (["--config", DIGITS, "--wrkdir=x"], "--workdir STR"),
        (["--config", DIGITS, "--config.model.norm=bacth"], "Expected one of ('none', 'batch'"),
        (["--config", DIGITS, "--config.optimizer.learning_rate=0"], "must be greater than 0 and at most 100, but it"),
        (["--config", DIGITS, "--config.optimizer.learning_rate=nan"], "must be greater than 0 and at most 100"),
        (["--config", DIGITS, "--config.train.epochs=0"], "`config.train.epochs` must be at least 1 and at most"),
        (
            ["--config", DIGITS, "--config.model.momentum=1.5"],
            "`config.model.momentum` must be at least 0 and at most 1",
        ),
        (["--config", DIGITS, "--config.train.epochs=2.5"], "--config.train.epochs: invalid literal for int()"),
        (
            ["--config", DIGITS, "--config.parallel.layout=gspmd"],
            "Expected one of ('jit', 'shard_map', 'pmap', 'vmap')",
        ),
        (["--config", DIGITS, "--config.parallel.sync=group"], "`config.parallel.group_size`, the number of devices"),
        (["--config", DIGITS, "--config.train.accumulate=0"], "`config.train.accumulate` must be at least 1"),
        (["--config", DIGITS, "--distributed.process_id=-1"], "`distributed.process_id` must be at least 0"),
        (["--config", DIGITS, "--distributed.process_id=0"], "`--distributed.num_processes` and"),
        (["--config=README.md"], "It can be: `configs/"),
        (["--config=[/b].py"], "There is no config file `[/b].py`. It can be: `configs/"),
        (["--config=" + "a" * 300 + ".py"], "File name too long: `aaa"),
        (["--config=\udcff.py"], r"Arguments must be UTF-8, but one is '--config=\udcff.py'."),
        (["--config", DIGITS, "--config.model.norm=[/b]"], "invalid choice '[/b]'"),
        (
            ["--config", DIGITS, "--config.train.batch_size=1000000000000"],
            "`config.train.batch_size` must be at least 2",
        ),
        (["--config", DIGITS, f"--config.seed={10**400}"], "at most 2147483647, but it is 1000000"),
        (
            ["--config", DIGITS, "--config.model.widths", str(2**31), "2", "2"],
            "`config.model.widths[0]` must be at least",
        ),
        (["--config", DIGITS, "--config.parallel.fake_devices=100000"], "at most 1024, but it is 100000"),
        (["--config", DIGITS, "--resume"], "`--resume` needs `--workdir`"),
        (["--resume", "--workdir=nowhere"], "There is no config file `nowhere/config.json`."),
    ],
)
def test_a_wrong_command_line_is_refused_with_a_way_out(refused, argv, expected):
    assert expected in refused(train, *argv)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--norms", "none,bacth"], "invalid choice 'bacth'"),
        (["--norms", "none,none"], "`--norms` must name each value once, but `none` is there 2 times."),
        (["--norms="], "`--norms` must name norms"),
        (["--batch_sizes=1"], "`batch_sizes[0]` must be at least 2"),
        (["--batch_sizes=8,8"], "`--batch_sizes` must name each value once, but `8` is there 2 times."),
        (["--batch_sizes=8,x"], "--batch_sizes"),
        (["--resume=maybe"], "`--resume` must be `True` or `False`, or stand alone, but it is 'maybe'."),
        (["--seeds", "0"], "`seeds` must be at least 1"),
        (["--config.train.epochs=-1"], "`config.train.epochs` must be at least 1"),
        (["--config.parallel.group_size=2"], "belongs to `--config.parallel.sync=group`"),
    ],
)
def test_a_wrong_comparison_is_refused(refused, argv, expected):
    assert expected in refused(compare, "--config", DIGITS, *argv)


def python(config):
    return f"from experiments.config import *\ndef get_config():\n  return {config}"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", "x = 1", "must return an `experiments.config.Config`, but there is none"),
        ("a.py", python("{'seed': 1}"), "must return an `experiments.config.Config`, but it"),
        ("a.py", "def get_config(:", "fails in line 1: SyntaxError"),
        ("a.py", python("1 / 0"), "fails in line 3: ZeroDivisionError"),
        (
            "a.py",
            python("Config(model=ModelConfig(nrom='none'))"),
            "line 3: `ModelConfig` has no `nrom`. Did you mean `norm`?",
        ),
        ("a.py", python("Config(model=ModelConfig(norm='non'))"), "`config.model.norm` must be one of `none`, `batch`"),
        ("a.py", python("Config(train=TrainConfig(epochs=1.5))"), "`config.train.epochs` must be of type `int`"),
        ("a.py", python("Config(model=ModelConfig(widths=(1, 2)))"), "`config.model.widths` must be 3 values"),
        ("a.json", '{"optimizer": {"learning_rat": 1}}', "Did you mean `learning_rate`?"),
        (
            "a.json",
            '{"zzz": 1}',
            "It can be: `seed`, `task`, `mark`, `data`, `model`, `optimizer`, `regularizers`, `parallel`, ",
        ),
        ("a.json", '{"data": {"train_examples": 0}}', "`config.data.train_examples` must be at least 1"),
        ("a.json", '{"seed": true}', "`config.seed` must be of type `int`, but it is True"),
        ("a.json", '{"model": 3}', "`config.model` must hold the fields of `ModelConfig`"),
        ("a.json", '{"seed": ', "cannot be read"),
        ("a.json", "[" * 100_000, "cannot be read: maximum recursion depth exceeded"),
        ("a.json", '{"seed": ' + "[" * 500 + "]" * 500 + "}", "`config.seed` must be of type `int`, but it is [[["),
        ("a.json", f'{{"seed": {10**400}}}', "`config.seed` must be at least 0 and at most 2147483647"),
        ("a.json", f'{{"optimizer": {{"learning_rate": {10**400}}}}}', "must be greater than 0 and at most 100"),
        ("a.json", r'{"data": {"directory": "\ud800"}}', "`config.data.directory` must be UTF-8"),
        ("a.json", r'{"data": {"directory": "\u0000"}}', "must have at most 4096 bytes, none of them zero"),
        ("a.py", python("sys.exit(0)").replace("def", "import sys\ndef"), "fails in line 4: SystemExit: 0."),
        ("a.py", "raise SystemExit", "fails in line 1: SystemExit"),
        ("a.py", python(f"Config(seed={10**400} ** 20)"), "at most 2147483647, but it is a int"),
        ("a.py", python("Config(seed=(i for i in ()))"), "`config.seed` must be of type `int`"),
        ("a.py", python("Config(model=ModelConfig)"), "`config.model` must hold the fields of `ModelConfig`"),
        ("a.yaml", "seed: 1", "must be a Python file with `get_config()`"),
    ],
)
def test_a_wrong_config_file_is_refused(refused, tmp_path, name, text, expected):
    file = tmp_path / name
    file.write_text(text)
    assert expected in refused(train, f"--config={file}")


def parsed(argv):
    return parse(train.Arguments, argv, "train")


@pytest.mark.parametrize("config", [["--config=" + DIGITS], ["--config", DIGITS]])
def test_overrides_go_over_the_file(config):
    overrides = ["--config.optimizer.learning_rate=0.3", "--config.data.shuffle_labels", "True", "--config.seed=7"]
    arguments = parsed([*overrides, *config, "--config.model.widths", "4", "5", "6"])
    expected = dataclasses.replace(
        load(DIGITS),
        seed=7,
        data=dataclasses.replace(load(DIGITS).data, shuffle_labels=True),
        optimizer=dataclasses.replace(load(DIGITS).optimizer, learning_rate=0.3),
        model=dataclasses.replace(load(DIGITS).model, widths=(4, 5, 6)),
    )
    assert arguments.config == expected
    assert arguments.workdir.startswith("runs/digits_cnn-")


def test_a_saved_config_is_accepted_again(tmp_path):
    config = Config(
        seed=3,
        model=ModelConfig(widths=(1, 2, 3)),
        optimizer=OptimizerConfig(learning_rate=1.0),
        parallel=ParallelConfig(sync="group", group_size=2),
    )
    file = tmp_path / "config.json"
    file.write_text(to_json(config))
    assert load(str(file)) == config
    assert parsed([f"--config={file}", "--config.seed=4"]).config == dataclasses.replace(config, seed=4)
    assert parsed(["--resume", f"--workdir={tmp_path}"]).config == config


@pytest.mark.parametrize("file", sorted(Path("configs").glob("*.py")), ids=lambda file: file.stem)
def test_every_config_file_is_right_and_survives_json(file):
    config = load(str(file))
    assert rebuild(config) == config
    assert build(Config, json.loads(to_json(config))) == config
    hash(config)


def test_differences_are_named():
    a = Config()
    b = dataclasses.replace(a, seed=1, model=ModelConfig(norm="none"))
    assert differences(a, b) == ["config.seed", "config.model.norm"]
    assert differences(a, a) == []


FORMS = {  # of one command: a list, a switch, and a number
    compare: (
        ["--norms=none,layer", "--resume", "--batch_sizes=4,8", "--config.data.shuffle_labels"],
        ["--norms", "none", "layer", "--resume=True", "--batch-sizes", "4", "8", "--config.data.shuffle-labels=True"],
        ["--norms", "none,layer", "--resume", "True", "--batch-sizes=4,8", "--config.data.shuffle_labels", "true"],
    ),
    scale: (["--layouts=jit", "--write"], ["--layouts", "jit", "--write=True"]),
    options: (
        ["--parts=op,step", "--memory_switch", "--write"], ["--parts", "op", "step", "--memory-switch=True", "--write"],
        ["--parts", "op,step", "--memory-switch", "--write", "True", "--quick=False", "--no-large"],
    ),
    numerics: (["--write"], ["--write=True"], ["--write", "--no_check"]),
    docs: (["--check"], ["--check", "true"], ["--check", "--write=False"]),
    faults: (["--kills=3"], ["--kills", "3"]),
    launch: (["--processes=3"], ["--processes", "3"]),
}  # fmt: skip


@pytest.mark.parametrize("program", FORMS, ids=lambda program: program.__name__)
def test_all_programs_take_all_forms_of_a_flag_alike(program):
    default = {"default": program.Arguments(config=Config())} if program is compare else {}
    made = [parse_flags(program.Arguments, argv, "program", **default) for argv in FORMS[program]]
    assert all(arguments == made[0] for arguments in made)
    assert made[0] != program.Arguments(**({"config": Config()} if default else {}))


def test_a_comma_with_a_blank_belongs_to_a_word():
    assert options.parse(["--contenders=bnjax, relu,flax"]).contenders == ("bnjax, relu", "flax")


@pytest.mark.parametrize("program", [numerics, docs])
def test_a_table_is_written_or_checked(program):
    with pytest.raises(UserError, match="exclude each other"):
        program.main(["--write", "--check"])
