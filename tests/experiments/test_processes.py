"""Several processes: the same run as one, checkpoints that fit all of them, and what happens when one dies."""

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from experiments import matrix
from experiments.cli.errors import UserError
from experiments.config import Config, DataConfig, EvalConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from experiments.config.file import load, to_json
from experiments.data import kind_of, load_data
from experiments.launch import main
from experiments.results.records import read_metrics
from experiments.training import launcher, run, steps
from experiments.training import processes as distributed
from experiments.training.checkpoints import last_arrays
from experiments.training.launcher import Group, free_port
from experiments.training.meeting import Greeting, Place, meet
from experiments.training.processes import Distributed
from tests.kit.compiling import environment

ROOT = Path(__file__).parents[2]
CONFIG = Config(
    data=DataConfig(train_examples=70, eval_examples=30),
    model=ModelConfig(widths=(2, 3, 4), dtype="float64"),
    optimizer=OptimizerConfig(learning_rate=0.001),
    parallel=ParallelConfig(sync="group", group_size=2, fake_devices=2),
    train=TrainConfig(epochs=4, batch_size=45, eval_batch_size=7),
    eval=EvalConfig(recalibrate=2),
)  # 2 steps an epoch; two processes of two devices, so that each group is a process


def command(*argv):
    return [sys.executable, "-m", "experiments.launch", "--processes=2", "--", *map(str, argv)]


# `experiments.launch`, whose processes stay in the second epoch: a run could be at its end before it is killed.
HELD = """
import signal, sys
from experiments import launch
worker = '''
import runpy, time
from experiments.training.checkpoints import Checkpoints
save = Checkpoints.save
def held(self, state, log):
    time.sleep(600 if int(state.step) > 2 else 0)
    save(self, state, log)
Checkpoints.save = held
runpy.run_module('experiments.train', run_name='__main__', alter_sys=True)
'''
commands = launch.commands
launch.commands = lambda n, argv: [[c[0], '-c', worker, *c[3:]] for c in commands(n, argv)]
launch.run_main(launch.main, signal.SIGTERM, signal.SIGHUP)
"""


class Ended(NamedTuple):
    """A run of two processes: one of them killed in the middle, and then continued."""

    workdir: Path
    status: int  # when it was killed
    said: str
    killed: int  # the process
    seconds: float  # from then to the end of all
    continued: str  # what was said then


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "tiny.json").write_text(to_json(CONFIG))
    start = functools.partial(
        subprocess.Popen, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    argv = command(f"--config={folder}/tiny.json", f"--workdir={folder}/run")
    with start([argv[0], "-c", HELD, *argv[3:]]) as group:
        lines = iter(group.stdout)
        pid = next(int(line.split()[-1]) for line in lines if line.startswith("Process ids: "))
        assert any("epoch   1" in line for line in lines), group.stderr.read()
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        said = group.communicate(timeout=300)[1]
        seconds = time.monotonic() - began
    with start(command("--resume", f"--workdir={folder}/run")) as again:
        out, errors = again.communicate(timeout=300)
    assert again.returncode == 0, out + errors
    return Ended(folder / "run", group.returncode, said, pid, seconds, out)


def program_of(devices, config=CONFIG):
    return steps.make_program(config, kind_of(load_data(config.data)), 8, devices=jax.devices()[:devices])


class Quiet:
    advance = line = record = staticmethod(lambda *_: None)


def restored(workdir, program):
    initial = program.init(jax.random.key(1))
    with run.checkpoints_of(workdir, CONFIG, load_data(CONFIG.data)) as checkpoints:
        return checkpoints.restore(initial, workdir / "metrics.jsonl", pytest.fail).state


def test_a_killed_process_ends_the_group_and_is_named(ended):
    assert ended.status == 128 + signal.SIGKILL
    assert f"error: process 1 of 2 (pid {ended.killed}) was killed by SIGKILL" in ended.said
    assert ended.seconds < 60  # where nobody ends the others, they stay for ten minutes


def test_two_processes_end_with_the_parameters_of_one_that_nothing_disturbed(ended, tmp_path, x64):
    assert "[0] epoch   4 of 4  step      8" in ended.continued
    assert "[1]" not in ended.continued  # only one speaks, and only one writes
    files = {f.name for f in ended.workdir.iterdir()}
    assert files == {"metrics.jsonl", "config.json", "checkpoints", "curves.png", ".lock"}
    program = program_of(4)
    records = run.train(CONFIG, load_data(CONFIG.data), program, tmp_path, Quiet())
    expected, made = (restored(folder, program) for folder in (tmp_path, ended.workdir))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), made, expected)
    logged = read_metrics(ended.workdir / "metrics.jsonl")
    np.testing.assert_allclose([[*r.values()] for r in logged], [[*r.values()] for r in records], rtol=1e-9)


@pytest.mark.parametrize("devices", [1, 8])
def test_what_two_processes_saved_is_taken_up_on_any_number_of_devices(ended, devices, x64):
    config = dataclasses.replace(CONFIG, parallel=ParallelConfig())
    state = restored(ended.workdir, program_of(devices, config))
    assert int(state.step) == 8
    assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(state))


# Trains one run after the other in a group of processes: what they import is imported once.
IN_TURN = """
import pathlib, sys
from experiments.cli.report import reporting
from experiments.config.file import load
from experiments.data import load_data
from experiments.training import processes, run
where, number, *folders = sys.argv[1:]
processes.start(load(folders[0] + '.json'), processes.Distributed(where, 2, int(number)))
for folder in map(pathlib.Path, folders):
    config = load(f'{folder}.json')
    data = load_data(config.data)
    with run.claim(folder, config, False), reporting(1, quiet=True) as report:
        run.train(config, data, run.program_of(config, data), folder, report)
"""


def small(config, **model):
    """In float64 on two devices for each process, with dropout; three steps."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, length=5, train_examples=33, eval_examples=20),
        model=dataclasses.replace(config.model, dtype="float64", dropout=0.2, **model),
        parallel=ParallelConfig(layout="shard_map", fake_devices=2),
        train=TrainConfig(epochs=1, batch_size=11, eval_batch_size=7),
    )


def test_a_model_of_one_s_own_and_another_task_train_in_two_processes_as_on_one_device(tmp_path, x64):
    tiny = ROOT / "tests" / "experiments" / "tiny.py"
    given = Config(data=DataConfig(name=f"{tiny}:load"), optimizer=OptimizerConfig(learning_rate=0.01))
    configs = {
        "own": small(load(str(ROOT / "configs" / "own_nnx.py"))),
        "masked": small(dataclasses.replace(given, task="masked_language_model"), name=f"{tiny}:Tokens"),
    }
    for name, config in configs.items():
        (tmp_path / f"{name}.json").write_text(to_json(config))
    where, folders = f"127.0.0.1:{free_port()}", [str(tmp_path / name) for name in configs]
    run_both = [[*python(IN_TURN), where, str(i), *folders] for i in range(2)]
    group = [subprocess.Popen(one, cwd=ROOT, env=environment()) for one in run_both]
    assert [process.wait(timeout=300) for process in group] == [0, 0]
    for name, config in configs.items():
        alone = matrix.trained(config, 1, tmp_path / f"{name}-alone")
        loss = read_metrics(tmp_path / name / "metrics.jsonl")[-1]["eval/loss"]
        made = {**last_arrays(tmp_path / name / "checkpoints"), "eval/loss": np.array(loss)}
        assert matrix.difference(made, alone) < 1e-9


def python(code):
    return [sys.executable, "-c", code]


def test_a_group_is_ended_by_the_first_that_fails_and_says_what_its_members_say(tmp_path, capfd):
    waits = f"""
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('waits', flush=True)
pathlib.Path({str(tmp_path / "said")!r}).touch()
time.sleep(600)
"""
    fails = f"""
import pathlib, time
while not pathlib.Path({str(tmp_path / "said")!r}).exists(): time.sleep(0.01)
raise SystemExit('fails')
"""
    group = Group([python(waits), python(fails)])
    assert group.wait() == (1, 1)
    group.kill()
    assert group.processes[0].returncode == -signal.SIGKILL  # long before its own end
    said = capfd.readouterr()
    assert said.out == "[0] waits\n"
    assert said.err == "[1] fails\n"


@pytest.mark.parametrize(
    ("how", "cause"),
    [(signal.SIGKILL, (1, -signal.SIGKILL)), (signal.SIGABRT, (0, 1))],
    ids=["killed", "aborted"],
)
def test_a_process_that_was_killed_is_the_cause_where_another_failed_without_it(tmp_path, how, cause):
    seen = str(tmp_path / "seen")
    fails = "raise SystemExit(1)"  # as one that has lost a connection, before it is seen that the other was killed
    dies = f"""
import os, pathlib, time
while not pathlib.Path({seen!r}).exists(): time.sleep(0.01)
os.kill(os.getpid(), {int(how)})
"""
    group = Group([python(fails), python(dies)])
    group.processes[0].wait()
    Path(seen).touch()
    assert group.wait() == cause
    group.kill()


def test_what_gloo_prints_is_not_shown_even_where_its_threads_mix_their_messages(capfd):
    part = "[Gloo] Rank 0 is connected to 3 peer ranks. Expected number of connected peer ranks is : "
    lines = [part + "3", part + "[Gloo] Rank 1", "3", "", part + "3said", "3 are said"]
    group = Group([python(f"print({chr(10).join(lines)!r})")])
    group.wait()
    group.kill()
    assert capfd.readouterr().out == "[0] said\n[0] 3 are said\n"


def test_a_group_that_succeeds_and_one_that_is_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "PATIENCE", 60)
    group = Group([python(""), python("")])
    assert group.wait() is None
    group.kill()
    ready = tmp_path / "ready"
    # A shell's job in the background begins with SIGINT ignored, and so does all that it starts.
    sleeper = f"""
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
try: open({str(ready)!r}, 'w'), time.sleep(600)
except KeyboardInterrupt: exit(7)
"""
    group = Group([python(sleeper)])
    while not ready.exists():
        time.sleep(0.05)
    group.interrupt()
    group.kill()
    assert group.processes[0].returncode == 7


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--processes=2"], "must come after `--`"),
        (["--processes=2", "--config=x"], "must come after `--`"),
        (["--processes=0", "--", "x"], "`processes` must be at least 1"),
    ],
)
def test_a_wrong_launch_is_refused(argv, expected):
    with pytest.raises(UserError, match=expected):
        main(argv)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (Distributed(num_processes=2), "belong together"),
        (Distributed("here", 2, 0), "must be HOST:PORT, but it is 'here'"),
        (Distributed("here:0", 2, 0), "must be HOST:PORT, but it is 'here:0'"),
        (Distributed("here:99999", 2, 0), "must be HOST:PORT, but it is 'here:99999'"),
        (Distributed(":1234", 2, 0), "must be HOST:PORT, but it is ':1234'"),
        (Distributed("here:1", 2, 2), "`--distributed.process_id` must be less than `--distributed.num_processes`, 2"),
    ],
)
def test_a_group_that_is_not_all_said_is_refused(group, expected):
    with pytest.raises(UserError, match=expected):
        distributed.start(Config(), group)


def test_devices_are_faked_before_the_first_use_of_jax():
    assert jax.device_count() == 8  # the first use
    distributed.start(Config(parallel=ParallelConfig(fake_devices=8)))  # there are
    with pytest.raises(UserError, match="it is 3 now, but this process has 8 devices already"):
        distributed.start(Config(parallel=ParallelConfig(fake_devices=3)))
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_NTASKS": "4"}, None),  # a shell in an allocation
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "a"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ],
)
def test_tasks_of_slurm_and_open_mpi_are_found_by_jax(monkeypatch, variables, expected):
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: called.append(how))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    distributed.start(Config(), Distributed())
    assert len(called) == (expected is not None)
    assert all(how["process_id"] is how["num_processes"] is how.get("coordinator_address") is None for how in called)


LAUNCHER = """
import signal, sys
from experiments import launch
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and these programs keep it so
worker = "import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)"
launch.commands = lambda n, _: [[sys.executable, "-c", worker]] * n
launch.run_main(launch.main, signal.SIGTERM, signal.SIGHUP)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGHUP, 130), (signal.SIGTERM, 130)]
)
def test_a_group_ends_with_its_launcher_whatever_ends_it(number, status):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        program = [sys.executable, "-c", LAUNCHER.format(port=server.getsockname()[1]), "--processes=2", "--", "x"]
        with subprocess.Popen(
            program, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as launcher:
            workers = [server.accept()[0] for _ in range(2)]
            launcher.send_signal(number)
            try:
                said = launcher.communicate(timeout=60)[1]
            finally:
                launcher.kill()  # or a failure would wait for it without end
        assert launcher.returncode == status
        assert not any(line.startswith("Traceback") for line in said.splitlines())  # of its own
        for worker in workers:
            worker.settimeout(60)
            assert not worker.recv(1)  # it is gone
            worker.close()


# Ends as soon as a process that it starts has begun, before it hears of that.
ENDS_EARLY = """
import os, select, signal, subprocess, sys
from experiments.training.warden import Warden
warden, start = Warden(), subprocess.Popen
def ends(command, **how):
    process = start(command, **how)
    select.select([process.stdout], [], [])
    {end}
subprocess.Popen = ends
worker = "import socket; s = socket.create_connection(('127.0.0.1', {port})); print('.', flush=True); s.recv(1)"
try: warden.start([sys.executable, "-c", worker], stdout=subprocess.PIPE)
except KeyboardInterrupt: warden.dismiss()
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise KeyboardInterrupt"])
def test_a_process_ends_with_what_ends_while_it_starts_it(end):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        subprocess.run(python(ENDS_EARLY.format(port=server.getsockname()[1], end=end)), cwd=ROOT, env=environment())
        with server.accept()[0] as worker:
            worker.settimeout(60)
            assert not worker.recv(1)  # it is gone


def meeting(*facts, place=None, timeout=60.0, processes=None):
    """What each of these processes is told when they meet; they live in threads."""
    place, told = place or Place("127.0.0.1", free_port()), {}

    def run(i):
        try:
            meet(place, Greeting(i, processes or len(facts), facts[i]), timeout)
        except UserError as error:
            told[i] = str(error)

    threads = [threading.Thread(target=run, args=(i,)) for i, f in reversed([*enumerate(facts)]) if f is not None]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_processes_that_are_told_the_same_meet_and_leave_the_port_free():
    place = Place("127.0.0.1", free_port())
    assert meeting({"a": 1}, {"a": 1}, {"a": 1}, place=place) == {}
    with socket.socket() as server:
        server.bind((place.host, place.port))  # without SO_REUSEADDR


def test_other_values_are_named_in_all_processes():
    facts = {"config": {"seed": 1, "train": {"epochs": 2}}, "resume": False}
    other = {"config": {"seed": 1, "train": {"epochs": 3}}, "resume": True}
    told = meeting(facts, facts, other)
    assert told.keys() == {0, 1, 2}
    assert set(told.values()) == {
        "Process 2 has other values than process 0 for `config.train.epochs`, `resume`; all processes of a group must "
        "be given the same."
    }


@contextlib.contextmanager
def another_program(answer):
    """Listens on a port, and says something to who comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    guest, _ = server.accept()
                    guest.sendall(answer)
                    guest.close()

        threading.Thread(target=serve, daemon=True).start()
        yield Place("127.0.0.1", server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


def test_processes_that_do_not_come_are_named_in_time():
    told = meeting({}, {}, None, None, timeout=2)  # enough for the first two to meet on a machine that is busy
    assert "Within 2 s processes 2, 3 of 4 did not come to 127.0.0.1" in told[0]
    assert told[1] == told[0]


def test_a_port_a_host_and_a_program_that_are_not_right_are_a_sentence():
    with another_program(b"SSH-2.0\r\n") as place:
        told = meeting({}, {}, place=place)
    assert "must name a free port of process 0, but 127.0.0.1" in told[0]
    assert "is taken by another program" in told[0]
    assert "there is another program" in told[1]
    told = meeting({}, {}, place=Place("no.such.host.invalid", 1234), timeout=0.5)
    assert all("no.such.host.invalid" in sentence for sentence in told.values())
    assert "Within 0.5 s process 1 was not let in by process 0" in meeting(None, {}, timeout=0.5)[1]
