"""The comparison: its figures, its table, its picture, and a page that needs nothing else."""

import datetime
import functools
import html.parser
import json
import math
import re
import struct
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import compare
from experiments.cli.errors import UserError
from experiments.cli.schema import rebuild
from experiments.config import Config, DataConfig, ModelConfig, TrainConfig
from experiments.config.file import to_json
from experiments.results.page import save_page, save_picture, save_sizes_page
from experiments.results.plots import STYLES, save_scores, scores_figure
from experiments.results.records import KEYS, read_metrics
from experiments.results.summary import Summary
from experiments.tasks import score_of, task_of
from experiments.tasks.classes import ERROR, LOSS
from experiments.training.pictures import save_curves

TINY = Config(
    seed=4,
    data=DataConfig(train_examples=40, eval_examples=30),
    model=ModelConfig(widths=(2, 3, 4)),
    train=TrainConfig(epochs=2, batch_size=16),
)
ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and the cells of tables, and sees that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1].append(data)


def summarize(norm, runs):
    return Summary(norm, ERROR, runs)


def records(*accuracies, loss=1.0):
    return [dict(zip(KEYS, (10 * i, loss, 0.5, loss, a), strict=True)) for i, a in enumerate(accuracies, 1)]


def test_figures_of_several_runs():
    summary = summarize("batch", [records(0.9, 0.96, 0.94), records(0.95, 0.9, 0.98), records(0.1, 0.2, 0.3)])
    values = np.array([6, 2, 70])
    np.testing.assert_allclose(summary.ends(), values)
    assert summary.figures == {
        "held-out error, %": f"{values.mean():.2f} ± {values.std(ddof=1):.2f}",
        "steps to 5 %": "15 ± 7 (2 of 3 runs)",
    }


def test_figures_of_one_run_have_no_deviation():
    assert summarize("none", [records(0.96)]).figures == {"held-out error, %": "4.00", "steps to 5 %": "10"}
    assert summarize("none", [records(0.5)]).figures == {"held-out error, %": "50.00", "steps to 5 %": "never"}


def test_figures_of_a_loss_have_no_target_and_three_figures_where_it_is_small():
    found = Summary("none", LOSS, [records(0.5, loss=0.01234), records(0.5, loss=0.01434)]).figures
    assert found == {"held-out loss": "0.0133 ± 0.0014"}
    assert Summary("none", LOSS, [records(0.5, loss=12.25)]).figures == {"held-out loss": "12.25"}
    assert Summary("none", LOSS, [records(0.5, loss=math.nan)]).figures == {"held-out loss": "nan"}


def assert_self_contained(text):
    page = Page(text)
    assert not page.open
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    links = [v for tag, name, v in page.attributes if (tag, name) == ("a", "href")]
    assert all(re.fullmatch(r"[\w-]+/metrics\.jsonl", link) for link in links)  # of runs, beside the page
    references = [
        v for tag, name, v in page.attributes if tag != "a" and name in ("src", "href", "xlink:href", "data", "srcset")
    ]
    assert references  # the drawing refers to its own parts
    assert all(r.startswith("#") for r in references)
    ids = [v for _, name, v in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {r[1:] for r in references} <= set(ids)
    assert all(u.startswith("#") for u in re.findall(r"url\((.*?)\)", text))
    return page


def test_a_comparison_ends_in_a_table_a_picture_and_a_page(compile_quickly, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare.run, "make_program", functools.cache(compare.run.make_program))
    (tmp_path / "tiny.json").write_text(to_json(TINY))
    argv = [f"--config={tmp_path}/tiny.json", "--norms", "none,batch", "--seeds", "2", f"--workdir={tmp_path}/all"]
    began = datetime.date.today()
    compare.main(argv)
    workdir = tmp_path / "all"
    runs = {n: [read_metrics(workdir / f"{n}-seed{s}" / "metrics.jsonl") for s in (4, 5)] for n in ("none", "batch")}
    assert runs["none"] != runs["batch"]
    assert runs["none"][0] != runs["none"][1]

    width, height = struct.unpack(">2I", (workdir / "compare.png").read_bytes()[16:24])
    assert width > 1.5 * height > 500
    page = assert_self_contained((workdir / "compare.html").read_text())
    assert ("html", "lang", "en") in page.attributes
    assert page.attributes.count(("svg", "role", "img")) == 2  # a drawing a panel: on a phone one above the other
    text = (workdir / "compare.html").read_text()
    assert f"jax {jax.__version__}" in text
    assert any(str(day) in text for day in (began, datetime.date.today()))  # midnight may pass
    links = [v for tag, name, v in page.attributes if (tag, name) == ("a", "href")]
    assert len(links) == 4
    assert all((workdir / link).is_file() for link in links)
    said = capsys.readouterr().out
    for norm, of_norm in runs.items():
        final = 100 * (1 - np.array([r[-1]["eval/accuracy"] for r in of_norm]))
        shown = f"{final.mean():.2f} ± {final.std(ddof=1):.2f}"
        assert [norm, shown, "never"] in page.rows
        assert re.search(rf"{norm}\W+{shown}\W+never", said)
        for seed, value in zip((4, 5), final, strict=True):
            assert [norm, str(seed), f"{value:.2f}", "never"] in page.rows

    # What is finished is kept, and a norm or a seed can be added.
    (workdir / "none-seed5" / "metrics.jsonl").write_bytes(
        before := (workdir / "none-seed5" / "metrics.jsonl").read_bytes()
    )
    compare.main(["--resume", f"--workdir={workdir}", "--norms=none", "--seeds=3"])
    assert (workdir / "none-seed5" / "metrics.jsonl").read_bytes() == before
    assert (workdir / "none-seed6" / "metrics.jsonl").exists()
    assert capsys.readouterr().out.count("epoch   1") == 1


def test_an_interrupted_comparison_says_how_to_continue(compile_quickly, monkeypatch, tmp_path, capsys):
    (tmp_path / "tiny.json").write_text(to_json(TINY))
    finished = iter([records(0.5)])

    def go_on(runs, *_):
        try:
            runs[0].log.records.extend(next(finished))
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(compare.run, "go_on", go_on)
    with pytest.raises(KeyboardInterrupt):
        compare.main([f"--config={tmp_path}/tiny.json", f"--workdir={tmp_path}/all", "--together=no"])
    said = capsys.readouterr().out
    assert "1 of 6 runs are finished." in said
    assert f"experiments.compare --resume --workdir={tmp_path}/all --norms=none,batch --seeds=3 --together=no" in said


def test_a_norm_that_diverges_or_never_errs_can_be_drawn(tmp_path):
    runs = {"none": [records(0.1, 0.1, loss=math.nan)], "batch": [records(0.9, 1.0)]}
    save_picture(tmp_path / "a.png", runs, ERROR)
    summaries = [summarize(norm, r) for norm, r in runs.items()]
    save_page(tmp_path / "a.html", runs, summaries, [0], Config(data=DataConfig(directory="<b>&")))
    text = (tmp_path / "a.html").read_text()
    assert_self_contained(text)
    assert "&lt;b&gt;&amp;" in text
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.html", "a.png"]


def test_eight_norms_have_a_colour_a_name_and_points_of_their_own():
    norms = [f"norm{i}" for i in range(8)]
    picture = scores_figure(
        {n: {2: [1.0, 1.2], 8: [1.0, 3.0]} for n in norms} | {"norm7": {2: [60.0], 8: [90.0]}}, ERROR
    )
    (ax,) = picture.axes
    points = [line.lines[0] for line in ax.containers]
    assert len({p.get_color() for p in points}) == len(STYLES) == 8
    assert len({x for p in points for x in p.get_xdata()}) == 16  # none covers another
    names = [t for t in ax.texts if t.get_text() in norms]
    assert [t.get_color() for t in names] == [p.get_color() for p in points]
    picture.draw_without_rendering()
    bottoms = [t.get_window_extent().y0 for t in names]
    tops = [t.get_window_extent().y1 for t in names]
    assert all(top <= bottom + 2 for top, bottom in zip(tops, bottoms[1:], strict=False))  # nor does a name
    low, middle, high = (ax.transData.transform((2, error))[1] for error in (1, 3, 90))
    assert middle - low > 0.25 * (high - low)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.dot(
        [0.2126, 0.7152, 0.0722], [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    )


@pytest.mark.parametrize("colour", [colour for colour, _ in STYLES])
def test_colours_are_seen_on_light_and_on_dark_pages(colour):
    own = luminance(colour) + 0.05
    assert 1.05 / own > 3
    assert own / (luminance("#121212") + 0.05) > 3


def test_the_curves_of_a_run_show_its_error_and_say_which_run_it_is(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("experiments.results.plots.Figure.savefig", lambda picture, file, **_: drawn.append(picture))
    save_curves(tmp_path / "curves.png", records(0.5, 0.75), "run7: digits, norm batch (linen), seed 3")
    assert drawn[0].get_suptitle() == "run7: digits, norm batch (linen), seed 3"
    errors = drawn[0].axes[0]
    assert errors.get_yscale() == "log"
    assert [list(line.get_ydata()) for line in errors.lines] == [[50, 50], [50, 25]]


def test_norms_over_batch_sizes_end_in_a_table_a_picture_and_a_page(compile_quickly, tmp_path, capsys):
    folder = tmp_path / "sizes"
    small = ["--config.data.train_examples=48", "--config.data.eval_examples=20", "--config.train.epochs=1"]
    small += ["--config.model.widths=2,3,4"]
    argv = ["--config=configs/digits_cnn.py", "--norms=none,ghost", "--seeds=1", "--batch_sizes=8,24", *small]
    compare.main([*argv, f"--workdir={folder}"])
    said = capsys.readouterr().out
    assert "batch 8" in said
    assert "batch 24" in said
    assert (folder / "batch_sizes.png").read_bytes().startswith(b"\x89PNG")
    page = assert_self_contained((folder / "compare.html").read_text())
    assert page.attributes.count(("svg", "role", "img")) == 1
    assert ["norm", "batch 8", "batch 24"] in page.rows
    links = [v for tag, name, v in page.attributes if (tag, name) == ("a", "href")]
    assert len(links) == 4
    for link in links:  # what a row says is what its run ended with
        (row,) = [row for row in page.rows if link == f"{row[0]}-batch{row[1]}-seed{row[2]}/metrics.jsonl"]
        assert row[3] == f"{100 * (1 - read_metrics(folder / link)[-1]['eval/accuracy']):.2f}"
    saved = json.loads((folder / "ghost-batch8-seed0" / "config.json").read_text())
    assert saved["train"]["batch_size"] == saved["model"]["ghost_size"] == 8
    assert saved["optimizer"]["learning_rate"] == pytest.approx(0.1 * 8 / 64)


def test_a_task_of_one_s_own_is_compared_by_its_loss(compile_quickly, tmp_path, capsys):
    small = ["--config.data.train_examples=100", "--config.data.eval_examples=20", "--config.train.epochs=1"]
    argv = [f"--config={ROOT}/configs/own.py", "--norms=layer", "--seeds=1", *small]
    compare.main([*argv, f"--workdir={tmp_path}/all"])
    said = capsys.readouterr().out
    page = assert_self_contained((tmp_path / "all" / "compare.html").read_text())
    last = read_metrics(tmp_path / "all" / "layer-seed0" / "metrics.jsonl")[-1]
    shown = f"{last['eval/loss']:.3g}"
    assert ["norm", "held-out loss"] in page.rows
    assert ["layer", shown] in page.rows
    assert re.search(rf"layer\W+{shown}", said)


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [
        ("classification", "Error on held-out examples, %", 25),
        ("masked_language_model", "Perplexity on held-out examples", 9),
        ("sequence_to_sequence", "Wrong sequences on held-out examples, %", 40),
        (f"{ROOT}/configs/own.py:REGRESSION", "Loss on held-out examples", 2),
    ],
)
def test_every_task_says_what_it_is_compared_by(task, name, value):
    score = score_of(task_of(Config(task=task)))
    record = {"eval/loss": 2.0, "eval/accuracy": 0.75, "eval/perplexity": 9.0, "eval/whole": 0.6}
    assert (score.on("held-out examples"), score.value(record, "eval")) == (name, value)


def test_a_norm_that_cannot_sit_in_a_model_of_one_s_own_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="`norm` 'instance' cannot sit at features"):
        compare.main([f"--config={ROOT}/configs/own.py", "--norms=none,instance", f"--workdir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("first", "last", "scale"), [(0.5, 2.0, "log"), (-1.0, 2.0, "linear"), (math.nan, math.inf, "log")]
)
def test_a_loss_has_the_scale_that_its_numbers_allow(first, last, scale):
    picture = scores_figure({"none": {8: [first], 32: [last]}, "batch": {8: [1.0], 32: [1.5]}}, LOSS)
    (ax,) = picture.axes
    assert ax.get_yscale() == scale
    assert ax.get_title(loc="left") == "Loss on held-out examples: mean and range of the seeds"
    picture.draw_without_rendering()
    heights = {t.get_text(): t.get_window_extent().y0 for t in ax.texts}
    assert heights["none"] > heights["batch"]  # what ends in no number is named above all others


@pytest.mark.parametrize("score", [ERROR, LOSS])
def test_a_run_that_ended_in_an_infinite_loss_is_compared_with_others(tmp_path, score):
    runs = {"none": [records(0.5, 0.1, loss=math.inf), records(0.5, 0.6)], "batch": [records(0.7, 0.9)] * 2}
    summaries = [Summary(norm, score, runs[norm]) for norm in runs]
    save_picture(tmp_path / "compare.png", runs, score)
    save_page(tmp_path / "compare.html", runs, summaries, (0, 1), TINY)
    scores = {summary.norm: {8: summary.ends(), 32: [1.0, 1.0]} for summary in summaries}
    save_scores(tmp_path / "sizes.png", scores, score)
    save_sizes_page(tmp_path / "sizes.html", scores, score, (0, 1), TINY)
    said = "inf ± nan" if score is LOSS else "65.00 ± 35.36"
    assert all(said in (tmp_path / name).read_text() for name in ("compare.html", "sizes.html"))


def test_a_rate_that_the_batch_scales_past_its_limit_is_a_sentence(tmp_path):
    argv = [
        "--config=configs/digits_cnn.py",
        "--norms=none",
        "--batch_sizes=8,1024",
        "--config.optimizer.learning_rate=50",
    ]
    with pytest.raises(UserError, match=r"`--batch_sizes=1024` scales .* at most 100, but it is 800.0"):
        compare.main([*argv, f"--workdir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--batch_sizes=8,2000"], "With `--batch_sizes=2000`, `config.train.batch_size` must be at most 1437"),
        (
            ["--batch_sizes=8,2", "--config.train.accumulate=4"],
            "With `--batch_sizes=2`, `config.train.accumulate` must",
        ),
        (
            ["--norms=batch,group", "--config.eval.recalibrate=2"],
            "^With `--norms=group`, `config.eval.recalibrate` must be 0",
        ),
        (
            ["--norms=group", "--batch_sizes=8", "--config.eval.recalibrate=2"],
            "^With `--batch_sizes=8` and `--norms=group`, `config.eval.recalibrate` must be 0",
        ),
        (["--config.parallel.sync=group"], "^`config.parallel.group_size`, the number"),
    ],
)
def test_what_does_not_fit_is_said_with_the_flags_that_were_given(tmp_path, argv, said):
    with pytest.raises(UserError, match=said):
        compare.main(["--config=configs/digits_cnn.py", *argv, f"--workdir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()


def test_every_batch_size_gives_a_config_that_its_run_can_read_again():
    """Ghost batches of one example would be refused, whatever the norm is."""
    for sized in compare.of_sizes(Config(), [2, 3, 8, 9]).values():
        assert rebuild(sized) == sized
