"""The benchmark: that all compute the same, that what it says adds up, and what it says when something is missing."""

import dataclasses
import doctest
import importlib
import json
import os
import pkgutil
import platform
import sys

import jax
import numpy as np
import pytest

import experiments
from experiments.bench import (
    contenders,
    documents,
    imports,
    model,
    op,
    options,
    picture,
    pytorch,
    resnet,
    rows,
    run,
    step,
    tables,
    work,
)
from experiments.bench.__main__ import main
from experiments.bench.options import Arguments
from experiments.cli.errors import UserError
from experiments.measure.targets import target_of

IMAGE, ROWS, GROUPED = (4, 3, 3, 8), (6, 16), (2, 3, 3, 64)
CASES = [
    work.Case(work.BATCH[1], IMAGE, "float32"),
    work.Case(work.BATCH[2], ROWS, "float32"),
    work.Case(work.SAMPLE[0], ROWS, "float32"),
    work.Case(work.SAMPLE[1], ROWS, "float32"),
    work.Case(work.SAMPLE[2], GROUPED, "float32"),
]


@pytest.fixture(autouse=True)
def as_in_a_run(monkeypatch):
    """Peers do not expect the strictness of this suite, and Keras has to run on JAX."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with jax.numpy_rank_promotion("allow"):
        yield


def computed(contender, case, operands):
    """The output, the gradients to input and residual in channels last, and whether the running state moved."""
    layer = contender.build(case)
    mine = operands.channels_first() if layer.channels_first else operands
    run_ = contenders.program(layer, case.work.training)
    out = jax.jit(run_)(layer.variables, layer.state, *mine)
    y, state, grads = out if case.work.training else (out, layer.state, (None, None, None))
    big = [t for t in (y, *grads[1:]) if t is not None]
    moved = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (layer.state, state)), strict=True)]
    return [np.moveaxis(t, 1, -1) if layer.channels_first else t for t in big], any(moved), jax.tree.leaves(grads[0])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_contenders_compute_what_flax_does(case):
    operands = work.random_tensors(case)
    by_name = {c.name: c for c in contenders.CONTENDERS if c.installed}
    want, _, want_params = computed(by_name["flax.linen"], case, operands)
    checked = 0
    for name, contender in by_name.items():
        if contender.build(case) is None:
            continue
        got, moved, params = computed(contender, case, operands)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5, err_msg=name)  # equinox 9e-6, the others less
        assert moved == (case.work.norm == "batch" and case.work.training), name
        sums = (sorted(float(np.abs(p).sum()) for p in leaves) for leaves in (params, want_params))
        np.testing.assert_allclose(*sums, rtol=1e-4, err_msg=name)
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4]], ids=str)
def test_pytorch_computes_what_flax_does_in_both_layouts(case):
    pytest.importorskip("torch")
    operands = work.random_tensors(case)
    flax = next(c for c in contenders.CONTENDERS if c.name == "flax.linen")
    (want, *_), _, _ = computed(flax, case, operands)
    for layout in pytorch.EAGER:
        call = pytorch.build(layout, case, operands)
        if call is None:
            assert len(case.shape) == 2
            continue
        y = call()[0] if case.work.training else call()
        y = y.movedim(1, -1) if y.ndim > 2 else y
        np.testing.assert_allclose(y.numpy(), want, rtol=1e-5, atol=1e-5)


def test_the_floor_counts_reads_and_writes():
    passes = {w.name: w.passes for w in (*work.BATCH, *work.SAMPLE)}
    forward, backward = 2 + 1, 4 + 1
    assert passes["norm + relu"] == forward + backward
    assert passes["norm + residual + relu"] == forward + 1 + backward + 1
    assert passes["norm + relu, evaluation"] == 1 + 1
    assert passes["layer norm"] == (1 + 1) + (2 + 1)


def test_the_copy_is_another_tensor_of_the_same_size():
    for dtype in ("float32", "bfloat16"):
        x = jax.numpy.arange(1.0, 5.0, dtype=dtype)
        copied = work.copied(x)
        assert copied.dtype == x.dtype
        assert not np.array_equal(copied, x)
        np.testing.assert_array_equal(work.copied(copied), x)


def copy_pages(folder):
    """The documents, without any facts."""
    folder.mkdir()
    for name in set(documents.PAGES.values()):
        (folder / name).write_text((documents.RESULTS / name).read_text())


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A run of everything that is quick, at sizes that are nothing, with plain output."""
    workdir = tmp_path_factory.mktemp("bench") / "run"
    pages = workdir.parent / "results"
    copy_pages(pages)
    arguments = Arguments(
        parts=("op", "step"), rounds=2, shapes=("4x3x3x8", "6x16"), dtypes=("float32",),
        contenders=("bnjax, relu", "bnjax.linen", "flax.linen"), workdir=str(workdir), write=True, quick=True,
        found=str(workdir.parent / "none.json"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):
        patch.setattr(documents, "RESULTS", pages)
        patch.setattr(step, "SMALL", {"batch": 2, "size": 16, "stages": (1,), "filters": 2})
        found = run.bench(arguments)
    return found, workdir, pages


def test_a_run_writes_its_results_and_they_add_up(tiny_run):
    found, workdir, _ = tiny_run
    text = (workdir / "bench.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(found))
    assert [tuple(r["shape"]) for r in found["op"]] == [(4, 3, 3, 8), (6, 16)] * 2
    for record in found["op"]:
        names = set(record["contenders"])
        assert names == {"bnjax, relu inside", "bnjax, relu outside", "bnjax.linen", "flax.linen"}
        assert record["floor_seconds"] == record["floor_passes"] / 2 * record["copy_seconds"]
        flax = record["contenders"]["flax.linen"]
        assert flax["against_best_jax_peer"] == 1  # the only peer
        for c in record["contenders"].values():
            assert 0 < c["min_seconds"] <= c["median_seconds"]
            assert c["over_floor"] == c["min_seconds"] / record["floor_seconds"]
            assert c["against_best_jax_peer"] == flax["min_seconds"] / c["min_seconds"]
    assert {r["contender"] for r in found["step"]} == {"flax.linen", "bnjax, relu inside"}
    assert found["machine"]["versions"]["jax"] == jax.__version__
    assert found["machine"]["cores"] >= 1
    assert platform.node() not in text
    assert str(workdir) not in text
    assert found["left_out"] == []


def test_a_run_draws_a_picture(tiny_run):
    data = (tiny_run[1] / "bench.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20]) > 500  # pixels wide


def test_panels_of_a_picture_have_one_scale_and_the_floor_is_explained_where_bars_pass_it(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("experiments.bench.picture.Figure.savefig", lambda figure, file, **_: drawn.append(figure))
    for least in (0.5, 1.5):
        contenders_at = [{"bnjax": {"over_floor": high}, "flax": {"over_floor": least}} for high in (2.0, 8.0)]
        records = [
            {"work": "norm", "dtype": dtype, "shape": [2, 3], "contenders": found}
            for dtype, found in zip(("float32", "bfloat16"), contenders_at, strict=True)
        ]
        picture.save_bars(tmp_path / "bench.png", records, "A machine.")
    assert len({ax.get_ylim() for ax in drawn[0].axes}) == 1
    assert "A machine." in drawn[0].get_supxlabel()
    assert ["below it" in figure.get_supxlabel() for figure in drawn] == [True, False]


def test_a_run_writes_into_the_documents_between_its_markers_alone(tiny_run):
    found, _, pages = tiny_run
    before, after = documents.page("op").read_text(), (pages / documents.PAGES["op"]).read_text()
    for table in (*tables.op_tables(found["op"]), *tables.step_tables(found["step"])):
        assert table.markdown() in after
        assert table.markdown() not in before
    marker = "<!-- bench: import -->"
    assert after[after.index(marker) :].split("<!-- bench: end -->")[0] in before
    for part in ("op", "step"):
        block = after[after.index(f"<!-- bench: {part} -->") :].split("\n\n")[0]
        assert block.endswith(" 2 rounds, kept buffers.")
    assert after.startswith(before.split("<!-- bench: op -->")[0])
    overview = tables.overview_tables([], found["op"])[0].markdown()
    assert f"<!-- bench: summary -->\n{overview}\n<!-- bench: end -->" in (pages / "performance.md").read_text()
    assert json.loads((pages / "facts" / "op.json").read_text()) == json.loads(json.dumps(found["op"]))
    assert not (pages / "facts" / "compiled.json").exists()


def test_the_document_has_a_place_for_every_part():
    for part in documents.PAGES:
        text = documents.page(part).read_text()
        assert f"<!-- bench: {part} -->\nX\n<!-- bench: end -->" in documents.put(text, part, "X")
    with pytest.raises(UserError, match="`<!-- bench: other -->` once"):
        documents.put(text, "other", "X")


def test_a_table_is_the_same_in_a_terminal():
    table = tables.Table("t", ["", "a"], [["x", "1"]])
    assert table.markdown() == "t:\n\n|  | a |\n| --- | ---: |\n| x | 1 |"
    assert [c.header for c in table.rich().columns] == ["", "a"]
    assert list(table.rich().columns[1].cells) == ["1"]


def test_a_run_does_not_overwrite_another(tiny_run):
    with pytest.raises(UserError, match="already holds a run; name another `--workdir`"):
        run.claim(Arguments(workdir=str(tiny_run[1])))


def test_norms_take_part_as_soon_as_bnjax_has_them(monkeypatch):
    everything = Arguments(dtypes=("float32",))
    for name in ("layer_norm", "rms_norm", "group_norm"):
        monkeypatch.delattr(f"bnjax.{name}", raising=False)
    assert {c.work.norm for c in op.cases(everything)} == {"batch"}
    monkeypatch.setattr("bnjax.layer_norm", len, raising=False)
    assert {c.work.norm for c in op.cases(everything)} == {"batch", "layer"}


def test_works_are_chosen_by_how_their_names_begin():
    assert {c.work.name for c in op.cases(Arguments(works=("layer", "RMS")))} == {"layer norm", "RMS norm"}
    with pytest.raises(UserError, match=r"`--works` must begin one of norm \+ relu, .*'weight'"):
        op.cases(Arguments(works=("weight",)))


def test_what_is_not_installed_is_left_out_with_a_sentence(monkeypatch):
    monkeypatch.setattr(contenders, "importable", lambda package: package in ("bnjax", "flax"))
    sentences = list(op.absent(Arguments()))
    assert [s.split(":")[0] for s in sentences] == ["haiku", "equinox", "keras", "PyTorch"]
    assert all("pip install" in s for s in sentences)
    timed, peers = op.entrants(CASES[1], Arguments(), work.random_tensors(CASES[1]))
    assert peers == ["flax.linen", "flax.nnx"]
    assert all(name.startswith(("bnjax", "flax")) for name in timed)


def test_an_import_is_timed_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(imports, "STATEMENTS", {"bnjax": "import bnjax, sys; assert 'experiments' not in sys.modules"})
    (record,) = imports.measure(Arguments(quick=True))
    assert 0 < record["min_seconds"] <= record["median_seconds"] < 60


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--target", "tpu"], "`--target` must be `cpu`"),
        (["--target", "gpu:a100"], "`gpu:h100`, but it is 'gpu:a100'"),
        (["--shapes", "32x0"], "'32x0' is not"),
        (["--shapes", "8"], "two to four sizes"),
        (["--rounds", "0"], "`--rounds` must be from 1 to 10000, but it is 0"),
    ],
)
def test_a_value_that_is_not_right_is_a_sentence(argv, words):
    with pytest.raises(UserError, match=words):
        options.parse(argv)


def test_the_program_starts_again_with_the_environment_it_needs(monkeypatch):
    started = []

    def execve(path, arguments, env):
        started.append((path, arguments, env))
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["bench", "--quick"])
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    with pytest.raises(SystemExit):
        main(sys.argv[1:])
    ((path, arguments, env),) = started
    assert (path, arguments) == (sys.executable, [sys.executable, "-m", "experiments.bench", *sys.argv[1:]])
    assert env["MALLOC_MMAP_MAX_"] == "0"
    assert env["KERAS_BACKEND"] == "jax"
    assert "MALLOC_MMAP_THRESHOLD_" not in env
    monkeypatch.setattr(os, "environ", env)
    options.restart("kept")  # does nothing now
    assert len(started) == 1


def test_models_compute_the_same_loss_and_gradients_with_every_norm():
    losses, params = {}, {}
    images, _labels = resnet.images_and_labels(4, 32, np.float32)
    data = np.random.default_rng(0).standard_normal(images.shape, np.float32), np.arange(4)
    for name, attributes in resnet.models(memory_switch=False).items():
        net = resnet.ResNet(**attributes, stages=(1, 1), filters=2, classes=5)
        state = resnet.initial(net, images)
        # The last norm of a block begins with a scale of zero, which would hide the block.
        state = (jax.tree.map(lambda p: p + 0.1, state[0]), *state[1:])
        params[name], _stats, _, losses[name] = jax.jit(resnet.step_of(net))(*state, *data)
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, losses["flax.linen"], rtol=1e-5, err_msg=name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params[name], params["flax.linen"]
        )
        assert jax.tree.structure(params[name]) == jax.tree.structure(params["flax.linen"])
    assert len(losses) == 3


def test_the_model_is_resnet_50():
    net = resnet.ResNet(**resnet.models(memory_switch=False)["bnjax, relu inside"])
    params, stats, _ = jax.eval_shape(lambda: resnet.initial(net, resnet.images_and_labels(1, 64, np.float32)[0]))
    assert sum(p.size for p in jax.tree.leaves(params)) == 25_557_032  # as torchvision.models.resnet50 has
    assert sum(s.size for s in jax.tree.leaves(stats)) == 2 * 26_560


@pytest.mark.parametrize("target", ["tpu:v5e:2x2", "gpu:h100"])
def test_a_missing_compiler_is_a_sentence_that_says_how_to_get_it(target, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "this environment has no compiler" in target_of(target).missing
    assert "pip install" in target_of(target).missing
    assert not target_of("cpu").missing


def test_a_compiler_that_fails_is_a_sentence(tmp_path):
    said = []
    arguments = Arguments(gpu_python="/bin/false", tpu_python=str(tmp_path / "python"))
    log = tmp_path / "log"
    assert list(model.measure(target_of("gpu:h100"), "bfloat16", arguments, log, said.append)) == []
    assert list(model.measure(target_of("tpu:v5e:2x2"), "bfloat16", arguments, log, said.append)) == []
    assert "ended with 1 (nothing was said)" in said[0]
    assert "`--tpu-python` must be an interpreter" in said[1]


def test_accelerators_are_compiled_for_in_bfloat16_alone_where_only_the_model_is():
    arguments = Arguments(target=("cpu", "gpu:h100"))
    assert [(str(t), d) for t, d in model.tasks(arguments)] == [
        ("cpu", "float32"), ("cpu", "bfloat16"), ("gpu:h100", "bfloat16"),
    ]  # fmt: skip
    assert model.works(arguments) == ["ResNet-50 step, batch norm"]
    every = dataclasses.replace(arguments, parts=("compiled",))
    assert len(model.tasks(every)) == 4
    assert model.works(every) == [row.name for row in rows.ROWS]


def test_works_that_no_compiled_program_has_are_refused_before_anything_is_done(tmp_path):
    with pytest.raises(UserError, match=r"`--works` must begin a name in `layer norm, 8192·1024`.*'weights'"):
        run.bench(Arguments(parts=("compiled",), works=("weights",), workdir=str(tmp_path / "run")))


@pytest.mark.parametrize("text", ["not JSON", '{"op": []}', '[{"what": "another file"}]'])
def test_facts_are_not_kept_in_a_file_of_something_else(text, tmp_path):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(UserError, match=r"`--found` must be a file of this benchmark, .*found\.json holds something"):
        run.bench(Arguments(
            parts=("compiled",), works=("layer",), found=str(tmp_path / "found.json"), workdir=str(tmp_path / "run"),
        ))  # fmt: skip
    assert (tmp_path / "found.json").read_text() == text


def facts(what, contender, cycles, megabytes, moved, **more):
    """A record as the process that compiles prints it."""
    nothing = dict.fromkeys(("gigaflops", "collectives", "convolutions"), 0)
    common = {"target": "tpu:v5e:2x2", "dtype": "bfloat16", "versions": "jax 0", "devices": 1, "repeats": 3}
    times = {"kernels": 4, "trace_seconds": 0.5, "compile_seconds": 2.0}
    return common | nothing | times | {
        "what": what, "contender": contender, "estimated_cycles": cycles, "temporary_megabytes": megabytes,
        "gigabytes_moved": moved,
    } | more  # fmt: skip


def kernel(kind, cost, share):
    return {"kind": kind, "operands": ["f32[8]"], "results": ["f32[4]"], "count": 1, "cost": cost, "share": share}


EXPLAINED = {"unit": "cycles", "total": [98, 100], "common": [49, 50],
             "without": [[kernel("fusion", 49.0, 0.5)], [kernel("copy", 50.0, 0.5)]]}  # fmt: skip
FACTS = [
    facts("layer norm, 8·16", "flax.linen", 100, 0.0, 0.5),
    facts("layer norm, 8·16", "bnjax, drop-in", 98, 0.0, 0.5, explained=EXPLAINED),
    facts("layer norm, 8·32", "flax.linen", 200, 0.0, 1.0),
    facts("layer norm, 8·32", "bnjax, drop-in", 202, 0.0, 1.0),
    facts("layer norm, 8·16", "flax.linen", 0, 20.0, 0.5, target="gpu:h100"),
    facts("layer norm, 8·16", "bnjax, drop-in", 0, 5.0, 0.25, target="gpu:h100"),
    facts("ResNet-50 step, batch norm", "flax.linen", 1000, 40.0, 2.0, devices=4),
    facts("ResNet-50 step, batch norm", "bnjax, relu inside", 900, 30.0, 2.0, devices=4),
]


def test_ratios_of_compiled_programs_are_of_the_same_machine_and_dtype():
    (overview,) = tables.overview_tables(FACTS)
    assert overview.head == ["", "gpu:h100, bfloat16", "tpu:v5e:2x2, bfloat16"]
    assert overview.rows == [["layer norm", "0.500 / 0.25", "0.980-1.010"]]
    (ratios,) = tables.ratio_tables(FACTS)
    assert ratios.rows[0] == ["layer norm, 8·16: bnjax, drop-in", "0.500 / 0.25", "0.980"]
    assert ratios.rows[-1] == ["ResNet-50 step, batch norm: bnjax, relu inside", "", "0.900 / 0.75"]
    tpu, gpu = tables.fact_tables(FACTS)
    assert "estimated cycles" in tpu.head
    assert "estimated cycles" not in gpu.head
    assert tpu.rows[1][:3] == ["layer norm, 8·16: bnjax, drop-in", "98 (0.980)", "0.500 (1.000)"]
    assert tpu.rows[-1][0] == "ResNet-50 step, batch norm, 4 devices: bnjax, relu inside"
    (explanation,) = tables.explanation_tables(FACTS)
    assert explanation.rows == [
        ["in both", "", "", "49 (50.0%)", "50 (50.0%)"],
        ["only bnjax, drop-in", "1 fusion", "f32[8] → f32[4]", "49 (50.0%)", ""],
        ["only flax.linen", "1 copy", "f32[8] → f32[4]", "", "50 (50.0%)"],
    ]


def test_an_overview_has_the_times_of_the_cpu_and_the_memory_of_its_programs():
    cells = {"flax.linen": {"min_seconds": 2.0}, "bnjax.linen": {"min_seconds": 1.0}, "haiku": {"min_seconds": 0.5}}
    timed = [
        {"work": "norm + relu", "shape": [2, 3, 3, 8], "dtype": "float32", "contenders": cells},
        {"work": "norm + relu", "shape": [6, 16], "dtype": "float32", "contenders": {"bnjax.linen": cells["haiku"]}},
    ]
    cpu = {"target": "cpu", "dtype": "float32"}
    compiled = [
        facts("batch norm + relu, 8·16", "flax.linen", 0, 2.0, 0.5, **cpu),
        facts("batch norm + relu, 8·16", "bnjax, drop-in", 0, 1.5, 0.4, **cpu),
        facts("encoder, layer norm (3 blocks)", "flax.linen", 0, 2.0, 0.5, **cpu),
        facts("encoder, layer norm (3 blocks)", "bnjax, drop-in", 0, 2.0, 0.4, **cpu),
        facts("instance norm, 8·16", "flax.linen", 0, 0.1, 0.5, **cpu),
        facts("instance norm, 8·16", "bnjax, drop-in", 0, 0.2, 0.4, **cpu),
    ]
    (overview,) = tables.overview_tables(compiled, timed)
    assert overview.head == ["", "cpu, float32"]
    assert overview.rows == [
        ["batch norm + relu", "0.50 / 0.75"], ["encoder, layer norm (3 blocks)", "- / 1.00"], ["instance norm", ""],
    ]  # fmt: skip


def test_facts_of_several_runs_are_kept_and_written_together(tmp_path, monkeypatch):
    pages = tmp_path / "results"
    copy_pages(pages)
    monkeypatch.setattr(documents, "RESULTS", pages)
    runs = [FACTS[:4], FACTS[4:], [facts("layer norm, 8·32", "bnjax, drop-in", 150, 0.0, 1.0)]]
    for i, found in enumerate(runs):
        monkeypatch.setattr(model, "measure", lambda *_, found=found: iter(found))
        run.bench(Arguments(
            parts=("compiled",), dtypes=("bfloat16",), write=True, workdir=str(tmp_path / str(i)),
            found=str(tmp_path / "kept" / f"{i}.json"),  # what others found stands beside the documents
        ))  # fmt: skip
    # What was found again takes the place of what was there, and machines are in order.
    kept = [*FACTS[4:6], *FACTS[:3], runs[2][0], *FACTS[6:]]
    assert model.kept(pages / "facts" / "compiled.json") == json.loads(json.dumps(kept))
    assert len(model.kept(tmp_path / "kept" / "0.json")) == 4
    written = (pages / "compiled.md").read_text()
    for table in (*tables.ratio_tables(kept), *tables.fact_tables(kept)):
        assert table.markdown() in written
    assert tables.fact_tables(FACTS[6:])[0].markdown() in written
    assert tables.overview_tables(kept)[0].markdown() in (pages / "performance.md").read_text()


def test_its_examples_are_right():
    for found in pkgutil.walk_packages(experiments.__path__, "experiments."):
        if not found.name.endswith("__main__"):
            assert doctest.testmod(importlib.import_module(found.name)).failed == 0
