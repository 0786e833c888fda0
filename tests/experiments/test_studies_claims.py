"""Studies as such: numbers in a file, claims that can fail, pages that need nothing else, and runs that go on."""

import html.parser
import itertools
import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bnjax import linen as bnn
from experiments import study as command
from experiments.cli.errors import UserError
from experiments.lab import damaged
from experiments.results import evidence, study_page
from experiments.results.claims import Claim, all_of, interval, judge, paired
from experiments.results.evidence import Evidence, Measured, Row, cell_name, settings_of
from experiments.results.study import Study
from experiments.studies import all_studies, gradients

COMMITTED = [(study, found) for study, found in all_studies() if found.rows]


def rows(cell, values, metric="accuracy", step=1):
    return [Row("s", cell, i, metric, step, v, "d", "c", "v") for i, v in enumerate(values)]


def test_numbers_come_back_from_their_file(tmp_path):
    saved = rows("norm=batch", [0.5, 1e-38, -3.25]) + rows("depth=3 norm=none", [0.1])
    evidence.save(tmp_path / "s.csv", saved)
    assert list(evidence.load(tmp_path / "s.csv").rows) == saved
    assert evidence.load(tmp_path / "none.csv").rows == ()
    (tmp_path / "s.csv").write_text("study,cell\ns,norm=batch\n")
    with pytest.raises(UserError, match="does not hold the rows of a study"):
        evidence.load(tmp_path / "s.csv")


@pytest.mark.parametrize("commits", [("", ""), ("", "a"), ("a", ""), ("a", "", "", "a")])
def test_no_word_is_not_the_word_above(tmp_path, commits):
    """As of a commit, where the program is outside of git."""
    saved = [row._replace(commit=c) for row, c in zip(rows("norm=batch", range(len(commits))), commits, strict=True)]
    evidence.save(tmp_path / "s.csv", saved)
    assert list(evidence.load(tmp_path / "s.csv").rows) == saved


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    evidence.save(tmp_path / "s.csv", rows("norm=batch", [0.5, 0.7]))
    text = (tmp_path / "s.csv").read_text()
    (tmp_path / "s.csv").write_text(text[: text.rindex(",")])
    with pytest.raises(UserError, match="fewer words than the head"):
        evidence.load(tmp_path / "s.csv")


def test_a_word_of_the_row_above_is_left_out_of_the_file(tmp_path):
    saved = rows("norm=batch", [0.5, 0.5]) + rows("norm=none", [0.5], "loss")
    evidence.save(tmp_path / "s.csv", saved)
    head, *lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines == ["s,norm=batch,0,accuracy,1,0.5,d,c,v", ",,1,,1,0.5,,,", ",norm=none,0,loss,1,0.5,,,"]
    in_full = "\n".join([head, *(",".join(map(str, row)) for row in saved)])
    (tmp_path / "full.csv").write_text(in_full)
    assert [list(evidence.load(tmp_path / name).rows) for name in ("s.csv", "full.csv")] == [saved, saved]
    (tmp_path / "s.csv").write_text("\n".join([head, *lines[1:]]))
    with pytest.raises(UserError, match="does not hold the rows of a study"):
        evidence.load(tmp_path / "s.csv")


def test_what_was_not_measured_is_no_number():
    found = Evidence(rows("norm=batch", [0.5, 0.7]))
    np.testing.assert_array_equal(found.values("accuracy", {"norm": "batch"}), [0.5, 0.7])
    with pytest.raises(LookupError):
        found.values("accuracy", {"norm": "layer"})
    with pytest.raises(ValueError, match="more than one cell"):
        Evidence(rows("depth=1 norm=batch", [1.0]) + rows("depth=2 norm=batch", [1.0])).values("accuracy", {})


def test_an_interval_is_that_of_the_mean():
    """Beside the normal approximation, which is near for many values."""
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(
        [found.low, found.mean, found.high], values.mean() + np.array([-half, 0, half]), atol=0.02
    )


def test_seeds_are_paired():
    """The difference of each seed is 0.1, however much the seeds differ."""
    found = Evidence(rows("norm=a", [0.1, 0.5, 0.9]) + rows("norm=b", [0.2, 0.6, 1.0]))
    np.testing.assert_allclose(paired(found, "accuracy", {"norm": "b"}, {"norm": "a"}), [0.1] * 3)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.9, 0.92, 0.91], "confirmed"), ([0.1, 0.2, 0.1], "refuted"), ([0.4, 0.9, 0.5], "within noise")],
)
def test_a_claim_says_what_the_numbers_bear_out(values, verdict):
    claim = Claim(
        "good",
        "It reaches {a:.2f}.",
        lambda e: {"a": interval(e.values("accuracy", {"norm": "a"}))},
        lambda f: f["a"].above(0.5),
        "",
    )
    found = judge(claim, Evidence(rows("norm=a", values)))
    assert found.verdict == verdict
    assert f"{np.mean(values):.2f}" in found.said
    assert str(judge(claim, Evidence(()))) == "**Not measured:** good. It needs accuracy of norm=a."
    assert all_of(["confirmed", verdict]) == verdict


@pytest.mark.parametrize(("study", "found"), COMMITTED, ids=lambda v: getattr(v, "name", ""))
def test_no_claim_holds_however_norms_are_mixed_up(study, found):
    """What holds, and would hold of all other norms, too, says nothing of norms."""

    def fails_somewhere(claim):
        label = claim.about or study.label
        pairs = itertools.combinations(found.choices(label, {}), 2)
        return any(judge(claim, found.swapped(label, *pair)).verdict in ("refuted", "within noise") for pair in pairs)

    verdicts = {claim: judge(claim, found).verdict for claim in study.claims}
    assert "not measured" not in verdicts.values()
    assert [c.name for c, verdict in verdicts.items() if verdict == "confirmed" and not fails_somewhere(c)] == []


def test_names_are_swapped_where_both_are_measured():
    found = Evidence(rows("norm=a size=1", [0.1]) + rows("norm=b size=1", [0.2]) + rows("norm=a size=2", [0.3]))
    swapped = found.swapped("norm", "a", "b")
    assert [(row.cell, row.value) for row in swapped.rows] == [
        ("norm=b size=1", 0.1), ("norm=a size=1", 0.2), ("norm=a size=2", 0.3),
    ]  # fmt: skip
    assert found.swapped("size", "1", "2").values("accuracy", {"norm": "a", "size": 1}) == [0.3]
    assert found.swapped("other", "a", "b").rows == found.rows


@pytest.mark.parametrize(("study", "found"), COMMITTED, ids=lambda v: getattr(v, "name", ""))
def test_the_numbers_are_of_the_cells_as_they_are_defined(study, found):
    """Each cell of the study, with the seeds that it needs, and none beside."""
    wanted = {study.digest_of_seeds(c, range(study.seeds)): c for c in study.cells(False)}
    assert {row.digest for row in found.rows} == set(wanted)
    assert all(
        {k: str(v) for k, v in wanted[r.digest].items()}.items() <= settings_of(r.cell).items() for r in found.rows
    )


def pretended(counts):
    def run(settings, seeds):
        if settings["norm"] == "layer" and not counts.get("layer"):
            counts["layer"] = 1
            raise KeyboardInterrupt
        counts[settings["norm"]] = counts.get(settings["norm"], 0) + 1
        yield from (Measured(seed, "accuracy", 0, 0.25) for seed in seeds)

    cells = [{"norm": norm} for norm in ("none", "layer", "batch")]
    return Study("pretended", "T", "Q?", "P", lambda quick: cells, run, 3, {}, (), lambda e: [])


@pytest.mark.parametrize("seeds", [5, 10])
def test_an_interval_holds_the_mean_of_many_seeds_95_times_in_100(seeds):
    """Within three deviations of 4,000 draws, one in 100. The bootstrap's percentiles do so 84 and 91 times."""
    drawn = np.random.default_rng(0).normal(2.0, 3.0, (4000, seeds))
    held = [found.low < 2.0 < found.high for found in map(interval, drawn)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)


def test_an_interrupted_study_goes_on(tmp_path, capsys):
    counts, arguments = {}, command.Arguments()
    study = pretended(counts)
    with pytest.raises(KeyboardInterrupt):
        command.measure(study, arguments, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert f"To continue, give the same command with `--workdir={tmp_path} --resume`." in said
    found = command.measure(study, arguments, tmp_path)
    assert counts == {"none": 1, "layer": 2, "batch": 1}
    assert len(found.rows) == 9
    assert list(evidence.load(tmp_path / "pretended.csv").rows) == list(found.rows)
    with pytest.raises(UserError, match="holds a study"):
        command.main(["gradients", f"--workdir={tmp_path}"])
    with pytest.raises(UserError, match="holds the study `pretended`; name another `--workdir` for `gradients`"):
        command.main(["gradients", f"--workdir={tmp_path}", "--resume"])
    assert "begins" not in capsys.readouterr().out
    command.measure(study, command.Arguments(resume=True), tmp_path / "none")
    assert f"There is no study in {tmp_path / 'none'} yet: one begins." in " ".join(capsys.readouterr().out.split())
    assert "index.html" not in (tmp_path / "pretended.html").read_text()  # which is not there


@pytest.mark.parametrize("flag", ["--quick", "--seeds=1", "--only=0"])
def test_only_whole_studies_are_written(flag):
    with pytest.raises(UserError, match="takes whole studies"):
        command.main(["efficiency", "--write", flag])


def test_cells_are_measured_in_processes_of_their_own(tmp_path):
    """A study that only reads, by submitit without a cluster: the same numbers in the same order."""
    command.main(["efficiency", "--quick", f"--workdir={tmp_path / 'one'}"])
    with pytest.raises(UserError, match="the digest of a cell"):
        command.main(["efficiency", "--only=none", f"--workdir={tmp_path / 'none'}"])
    command.main(["efficiency", "--quick", f"--workdir={tmp_path / 'apart'}", "--where=local", "--at_once=2"])
    one, apart = (list(evidence.load(tmp_path / name / "efficiency.csv").rows) for name in ("one", "apart"))
    assert one == apart
    assert len({row.cell for row in one}) == 8  # four machines, two libraries
    assert len(list((tmp_path / "apart" / "jobs").glob("*/finished.json"))) == 4


def test_a_page_of_a_part_of_a_study_says_which_part(tmp_path, capsys):
    whole, study = pretended({"layer": 1}), pretended({"layer": 1})
    some = study._replace(cells=lambda quick: study.cells(quick)[: 1 if quick else 3])
    command.measure(some, command.Arguments(quick=True), tmp_path / "quick")
    said = "This is a part of the study: 2 of 3 seeds, 1 of 3 cells."
    assert said in (tmp_path / "quick" / "pretended.html").read_text()
    command.show_claims(some, evidence.load(tmp_path / "quick" / "pretended.csv"), False)
    assert said in " ".join(capsys.readouterr().out.split())
    command.measure(whole, command.Arguments(), tmp_path / "whole")
    assert "part of the study" not in (tmp_path / "whole" / "pretended.html").read_text()


def test_a_picture_of_some_kinds_of_damage_has_no_empty_panels():
    own = "method=as_is norm=batch part"
    found = [
        row
        for n in damaged.SEVERITIES
        for row in rows(f"corruption=contrast {own}=damage severity={n}", [0.5], "error")
    ]
    found += rows(f"{own}=clean severity=0", [0.1], "error")
    (picture,) = damaged.by_severity(Evidence(found), "digits")
    (drawn,) = picture.spec["datasets"].values()
    assert {row["damage"] for row in drawn} == {"contrast"}


def test_a_network_that_is_scanned_trains_as_one_that_is_written_out(monkeypatch):
    """Three steps of layers in a loop with plain Flax, and the gradients by hand."""
    for name, value in (("STEPS", 3), ("EVERY", 1), ("BATCH", 8)):
        monkeypatch.setattr(gradients, name, value)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)).astype(np.float32), rng.integers(0, 10, 20)
    net = gradients.Deep("layer", 2, "tanh")
    _, sizes = gradients.trained(net, (x, y), (x, y), jnp.array(3), jnp.array(0.1))
    key = jax.random.key(3)
    params = net.init(key, x[:1], True)["params"]
    momentum = jax.tree.map(jnp.zeros_like, params)

    def loss(params, x, y):
        for i in range(2):
            own = jax.tree.map(lambda p, i=i: p[i], params["layers"])
            x = nn.tanh(nn.LayerNorm().apply({"params": own["norm"]}, nn.Dense(6).apply({"params": own["dense"]}, x)))
        logits = nn.Dense(10).apply({"params": params["head"]}, x)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y].mean()

    for i in range(3):
        at = jax.random.randint(jax.random.fold_in(key, i), (8,), 0, 20)
        grads = jax.grad(loss)(params, x[at], y[np.asarray(at)])
        want = [np.linalg.norm(g) for g in grads["layers"]["dense"]["kernel"]]
        np.testing.assert_allclose(sizes[i], want, rtol=2e-5)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, params, momentum)


def test_the_growth_is_the_slope_over_the_layers(monkeypatch):
    monkeypatch.setattr(gradients, "DEEP", 4)
    monkeypatch.setattr(gradients, "WIDE", 16)
    keys = jax.random.split(jax.random.key(7), 3)
    x, g = jax.random.normal(keys[0], (8, 16)), jax.random.normal(keys[2], (8, 16))
    params = gradients.Deep("batch", 4, "relu").init(keys[1], x[:2], True)["params"]["layers"]
    norm = bnn.BatchNorm(use_running_average=False)

    def above(x, first, last=4):
        for i in range(first, last):
            own = jax.tree.map(lambda p, i=i: p[i], params)
            y = x @ own["dense"]["kernel"] + own["dense"]["bias"][None]
            x = nn.relu(norm.apply({"params": own["norm"]}, y, mutable=["batch_stats"])[0])
        return x

    inputs = [x]
    for i in range(3):
        inputs.append(above(inputs[i], i, i + 1))
    sizes = [np.linalg.norm(jax.vjp(lambda x, i=i: above(x, i), inputs[i])[1](g)[0]) for i in range(4)]
    want = np.exp(-np.polyfit(np.arange(4), np.log(sizes), 1)[0])
    np.testing.assert_allclose(gradients.growth("batch", 8, jnp.array(7)), want, rtol=1e-4)


# Pages


class Links(html.parser.HTMLParser):
    """Everything that a page loads or leads to."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found += [v for k, v in attributes if k in ("src", "href")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("altair", reason="pages are drawn with `bnjax[studies]`")
    pytest.importorskip("vl_convert")
    cells = gradients.cells(True)
    found = []
    for i, cell in enumerate(cells):
        for seed in range(2):
            named = [(f"accuracy at rate {r:g}", 400, 0.1 * seed + 0.05 * i) for r in gradients.RATES]
            named += [("log10 of first / last", 0, -2.0), ("growth", 0, 1.2)]
            named += [(f"log10 of gradient, layer {n}", step, -n * 1.0) for n in (1, 2) for step in (0, 40)]
            found += [Row("gradients", cell_name(cell), seed, m, s, v, "d", "c", "v") for m, s, v in named]
    file = tmp_path_factory.mktemp("pages") / "gradients.html"
    file.write_text(study_page.study_page(gradients.STUDY, Evidence(found)))
    return file


def test_a_page_needs_nothing_else(page):
    text = page.read_text()
    assert Links(text).found == ["index.html"]
    assert len(re.findall(r'data-spec="spec\d"><svg', text)) == 3  # a picture in the place of each chart
    assert len(re.findall(r'<script type="application/json"', text)) == 3
    assert '<th scope="row">batch</th><td>0.1 [-0.535, 0.735]</td>' in text  # of 0.05 and 0.15; t is 12.7 for two
    for spec in re.findall(r'<script type="application/json" id="spec\d">(.*?)</script>', text):
        assert json.loads(spec)["$schema"].startswith("https://vega.github.io/schema/vega-lite/")


CLICK = """
<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
const fetched = [];
const own = window.fetch; window.fetch = (...a) => { fetched.push(String(a[0])); return own(...a); };
const soon = (ready, then) => {  // as soon as it is ready, as a busy machine is slow; after 8 seconds in any case
  const look = left => ready() || !left ? then() : setTimeout(look, 100, left - 1);
  look(80);
};
const charts = [];
const drawn = () => {
  charts.splice(0, charts.length, ...document.querySelectorAll(".chart"));
  return charts.length && charts.every(c => c.matches(".vega-embed") && c.querySelector(".role-legend path"));
};
soon(drawn, () => {
  const chart = charts[0];
  const lines = () => [...chart.querySelectorAll(".mark-line path")].map(p => p.getAttribute("opacity"));
  const before = lines();
  const symbol = chart.querySelector(".role-legend-symbol path:not(.background):not(.foreground)");
  const box = symbol.getBoundingClientRect();
  const at = {bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, view: window};
  for (const kind of ["pointerover", "pointermove", "pointerdown", "pointerup", "click"])
    symbol.dispatchEvent(new PointerEvent(kind, at));
  const marks = ".mark-line path, .mark-rect path";
  soon(() => lines().some(opacity => opacity < 1), () => {
    const drawn = charts.map(c => c.querySelectorAll(marks).length);
    document.title = "RESULT" + JSON.stringify({errors, fetched, before, after: lines(), drawn}) + "END";
  });
});
</script>
"""


def test_in_a_browser_charts_are_drawn_and_the_legend_fades(page, tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("there is no Chromium to open the page in")
    file = tmp_path / "page.html"
    file.write_text(page.read_text().replace("<head>", f"<head>{CLICK}", 1))
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=20000", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run(
        [chromium, *options, f"file://{file}"], capture_output=True, text=True, check=True, timeout=300
    )
    found = json.loads(re.search(r"<title>RESULT(.*?)END</title>", done.stdout)[1].replace("&amp;", "&"))
    assert found["errors"] == []
    assert found["fetched"] == []
    assert all(n > 1 for n in found["drawn"]), found
    assert set(found["before"]) == {"1"}
    assert sorted(found["after"])[0] < "1", found
    assert "1" in found["after"]
