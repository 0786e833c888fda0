"""The architectures: parameters and products as published, the shapes after each stage, the order of the norms."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from experiments import zoo
from experiments.cli.errors import UserError
from experiments.measure.products import products
from experiments.measure.zoo import ROWS, facts, multiply_adds, norm_sites, traced
from experiments.models import bert, densenet, resnet, transformer
from experiments.models.norms import NormChoice

BY_NAME = {row.name: row for row in ROWS}
# To trace these takes most of the time. They differ from others by their numbers alone: see `test_sizes_...`.
SLOW = [
    "ResNet-34", "ResNet-101", "ResNet-152", *(f"ResNet-{layers}, CIFAR" for layers in (32, 44, 56, 110)),
    "DenseNet-161", "DenseNet-169", "DenseNet-201", "DenseNet, 40 layers, k = 12", "DenseNet-BC, 100 layers, k = 12",
    "Transformer big", "BERT base", "BERT large",
]  # fmt: skip
EXACT = [name for name in BY_NAME if name not in SLOW]
UNPUBLISHED = {  # whose papers print no number: what their layers come to
    "article CNN": 10 * 32 + (9 * 32 + 1) * 64 + (7 * 7 * 64 + 1) * 128 + 1290 + 2 * (1 + 32 + 64 + 128),
    "MLP": 784 * 100 + 100 + 2 * 10_100 + 1010 + 3 * 200,
    "LSTM, by pixels": 4 * 100 * (1 + 100) + 1010 + (400 + 400) + 400 + (100 + 100),
    "GRU, by pixels": 3 * 100 * (1 + 100) + 1010 + 600 + 300,
}


@functools.cache
def trace(name):
    """What the trace of a row has, and the shapes that its parts give, without the axis of examples."""
    row, shapes = BY_NAME[name], {}

    def keep(method, args, kwargs, context):
        y = method(*args, **kwargs)
        if context.method_name == "__call__" and len(context.module.path) == 1 and hasattr(y, "shape"):
            shapes[context.module.path[0]] = y.shape[1:]
        return y

    with nn.intercept_methods(keep):
        return traced(row.model(), row.inputs), shapes


def printed(number, like):
    """A number in the form of one that is printed: `25,557,032`, `1.7 M`, `4.089`."""
    if " M" in like:
        digits = len(like.split()[0].partition(".")[2])
        return f"{number / 1e6:.{digits}f} M"
    return f"{number:,}" if "," in like else f"{number / 1e9:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("name", EXACT)
def test_parameters_and_products_are_those_that_are_published(name):
    row, (found, _) = BY_NAME[name], trace(name)
    if name == "Transformer base":  # the paper counts 65 million, without saying which
        assert found.parameters == transformer_count(512, 2048)
    elif name == "AlexNet, two groups":  # rounded down in the paper
        assert found.parameters == ALEXNET
    elif row.published:
        assert printed(found.parameters, row.published) == row.published
    else:
        assert found.parameters == UNPUBLISHED[name]
    if row.published_products:
        assert printed(found.products, row.published_products) == row.published_products


CONVS = 96 * (3 * 121 + 1) + 256 * (48 * 25 + 1) + 384 * (256 * 9 + 1) + 384 * (192 * 9 + 1) + 256 * (192 * 9 + 1)
ALEXNET = CONVS + 4096 * (256 * 36 + 1) + 4096 * 4097 + 1000 * 4097


def transformer_count(d, hidden, pre=False, blocks=6, vocabulary=37_000):
    """The parameters of a Transformer, without a model."""
    attention, dense, norm = 4 * (d * d + d), 2 * d * hidden + hidden + d, 2 * d
    return blocks * (3 * attention + 2 * dense + 5 * norm) + vocabulary * d + 2 * norm * pre


def test_sizes_of_the_transformer_are_near_those_that_are_published():
    base = transformer.build(norm=NormChoice("layer"), size="small", pre=True)
    assert traced(base, BY_NAME["Transformer base"].small_inputs)[0] == transformer_count(64, 256, True, 2, 32)
    big = transformer.SIZES["big"]
    assert printed(transformer_count(big["features"], big["hidden"], blocks=big["blocks"]), "213 M") == "214 M"


def bert_count(features, blocks, heads, vocabulary=30_522, length=512, **_):
    """The parameters of BERT with its heads, without a model."""
    d, norm = features, 2 * features
    block = 4 * (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 2 * norm
    return (vocabulary + length + 2) * d + norm + blocks * block + 2 * (d * d + d) + norm + vocabulary + 2 * d + 2


def test_sizes_of_bert_are_those_that_are_published():
    assert f"{bert_count(**bert.SIZES['base']):,}" == BY_NAME["BERT base"].published
    assert f"{bert_count(**bert.SIZES['large']):,}" == BY_NAME["BERT large"].published
    tiny = traced(
        bert.build(norm=NormChoice("layer"), size="tiny", next_sentence=True), BY_NAME["BERT base"].small_inputs
    )
    assert tiny.parameters == bert_count(**bert.SIZES["tiny"])
    heads = sum(
        x.size for k, v in tiny.variables["params"].items() if "head" in k or "next" in k for x in jax.tree.leaves(v)
    )
    assert tiny.parameters - heads == 4_385_920  # of google/bert_uncased_L-2_H-128_A-2


def resnet_count(stages, filters=64, bottleneck=True, images="large", shortcut="projection", classes=1000):
    """The parameters of a ResNet, without a model."""
    c = filters
    total = (49 if images == "large" else 9) * 3 * c + 2 * c
    for i, blocks in enumerate(stages):
        f, wide = filters * 2**i, (4 if bottleneck else 1) * filters * 2**i
        for j in range(blocks):
            total += (c + 9 * f + wide) * f + 4 * f + 2 * wide if bottleneck else 9 * f * (c + f) + 4 * f
            if shortcut == "projection" and c != wide and j == 0:
                total += c * wide + 2 * wide
            c = wide
    return total + (c + 1) * classes


@pytest.mark.parametrize("size", resnet.SIZES)
def test_sizes_of_resnet_are_those_that_are_published(size):
    count = resnet_count(**resnet.SIZES[size])
    published = {row.size: row.published for row in ROWS if row.build is resnet.build}
    if size in ("small", "cifar14"):
        assert count == {"small": 19_218, "cifar14": 172_506}[size]
        assert count == traced(resnet.build(norm=NormChoice(), size=size), BY_NAME["ResNet-20, CIFAR"].inputs)[0]
    else:
        assert printed(count, published[size]) == published[size]


def densenet_count(
    blocks=(6, 12, 24, 16), growth=32, start=64, bottleneck=True, keeps=0.5, images="large", classes=1000
):
    """The parameters of a DenseNet, without a model."""
    c, stem = start, 7 if images == "large" else 3
    total = stem * stem * 3 * c + (2 * c if images == "large" else 0)
    for i, layers in enumerate(blocks):
        for _ in range(layers):
            inner = 4 * growth if bottleneck else c
            total += 2 * c + 9 * inner * growth + ((c + 2) * inner if bottleneck else 0)
            c += growth
        total += 2 * c
        if i < len(blocks) - 1:
            total, c = total + c * int(c * keeps), int(c * keeps)
    return total + (c + 1) * classes


@pytest.mark.parametrize("size", densenet.SIZES)
def test_sizes_of_densenet_are_those_that_are_published(size):
    sizes = {k: v for k, v in densenet.SIZES[size].items() if k != "dropout"}
    published = {row.size: row.published for row in ROWS if row.build is densenet.build}
    count = densenet_count(**sizes)
    if size == "small":
        assert (
            count
            == 32_606
            == traced(densenet.build(norm=NormChoice(), size=size), BY_NAME["DenseNet-121"].small_inputs)[0]
        )
    else:
        assert printed(count, published[size]) == published[size]


NEAR = {  # how far from the products XLA's count may be: it leaves out zeros of paddings, and counts norms
    "ResNet-50": 0.03, "VGG-16": 0.035, "AlexNet, one column": 0.08, "Xception": 0.01,
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_xla_counts_nearly_as_many_multiply_adds(name):
    row = BY_NAME[name]
    found, _ = trace(name)
    assert abs(multiply_adds(row.model(), found.variables, row.inputs) / found.products - 1) < NEAR[name]


def squares(*of, names=None):
    """`{"stage0": (side, side, channels), ...}` of pairs (side, channels)."""
    names = names or [f"stage{i}" for i in range(len(of))]
    return {name: (side, side, channels) for name, (side, channels) in zip(names, of, strict=True)}


RESNET = ["stem", "stage0", "stage1", "stage2", "stage3"]
INCEPTION = [f"inception_{name}" for name in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
STAGES = {
    "ResNet-18": squares((56, 64), (56, 64), (28, 128), (14, 256), (7, 512), names=RESNET),
    "ResNet-50": squares((56, 64), (56, 256), (28, 512), (14, 1024), (7, 2048), names=RESNET),
    "ResNet-20, CIFAR": squares((32, 16), (32, 16), (16, 32), (8, 64), names=RESNET[:4]),
    "VGG-16": squares((112, 64), (56, 128), (28, 256), (14, 512), (7, 512)),
    "AlexNet, two groups": squares((27, 96), (13, 256), (13, 384), (13, 384), (6, 256)),
    "AlexNet, one column": squares((27, 64), (13, 192), (13, 384), (13, 256), (6, 256)),
    "BN-Inception": squares(
        (28, 256), (28, 320), (14, 576), (14, 576), (14, 576), (14, 608), (14, 608), (7, 1056), (7, 1024), (7, 1024),
        names=INCEPTION,
    ),
    "DenseNet-121": squares((56, 256), (28, 512), (14, 1024), (7, 1024)),
    "Xception": squares((74, 128), (37, 256), (19, 728), *[(19, 728)] * 8, (10, 1024)),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_the_shape_after_each_stage_is_that_of_the_paper(name):
    _, shapes = trace(name)
    assert {part: shape for part, shape in shapes.items() if part in STAGES[name]} == STAGES[name]


def in_a_row(paths):
    """How many norms in a row are in each part, and the names of the first part's."""
    return [(part, len(list(group))) for part, group in itertools.groupby(path.rpartition("/")[0] for path in paths)]


def sites(name):
    row = BY_NAME[name]
    return norm_sites(row.model(), trace(name)[0].variables, row.inputs)


def test_norms_of_a_resnet_come_in_their_order():
    names = ("norm1", "norm2", "norm3")
    expected = ["stem/norm"]
    for stage, blocks in enumerate((3, 4, 6, 3)):
        expected += [f"stage{stage}/block0/{name}" for name in (*names, "norm_proj")]
        expected += [f"stage{stage}/block{i}/{name}" for i in range(1, blocks) for name in names]
    assert sites("ResNet-50") == expected


@pytest.mark.parametrize("pre", [False, True])
def test_norms_of_a_transformer_come_in_their_order(pre):
    inputs, model = (
        BY_NAME["Transformer base"].small_inputs,
        transformer.build(norm=NormChoice("rms"), size="small", pre=pre),
    )
    encoder = [f"encoder/block{i}/norm_{name}" for i in range(2) for name in ("self", "dense")]
    decoder = [f"decoder/block{i}/norm_{name}" for i in range(2) for name in ("self", "cross", "dense")]
    expected = [*encoder, "encoder/norm", *decoder, "decoder/norm"] if pre else encoder + decoder
    assert norm_sites(model, traced(model, inputs).variables, inputs) == expected


def test_norms_of_bert_come_in_their_order():
    inputs, model = BY_NAME["BERT base"].small_inputs, bert.build(norm=NormChoice("layer"), size="small")
    blocks = [f"encoder/block{i}/norm_{name}" for i in range(2) for name in ("self", "dense")]
    assert norm_sites(model, traced(model, inputs).variables, inputs) == ["embedded_norm", *blocks, "head_norm"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VGG-16, batch norm", [("stage0", 2), ("stage1", 2), ("stage2", 3), ("stage3", 3), ("stage4", 3)]),
        ("AlexNet, two groups", [("stage0", 1), ("stage1", 1)]),
        ("BN-Inception", [("", 3), *[(name, 5 if name[-2:] in ("3c", "4e") else 7) for name in INCEPTION]]),
        ("Xception", [("", 2), *[(f"stage{i}", 3) for i in range(12)], ("", 2)]),
        ("article CNN", [("", 4)]),
        ("LSTM, by pixels", [("BatchNormLSTMCell_0", 3)]),
    ],
)
def test_norms_of_other_models_come_in_their_order(name, expected):
    assert in_a_row(sites(name)) == expected


# The command


def test_loops_count_as_often_as_they_run():
    def looped(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=7)[0]

    x, w = jnp.ones((2, 3)), jnp.ones((3, 3))
    assert products(jax.make_jaxpr(looped)(x, w).jaxpr) == 7 * 2 * 3 * 3
    either = jax.make_jaxpr(lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x))(x)
    assert products(either.jaxpr) == 2 * 3 * 3
    with pytest.raises(ValueError, match="loop whose length"):
        products(jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x))(x).jaxpr)


def test_the_command_prints_a_table_and_json(capsys):
    zoo.main(["--names", "MLP"])
    assert "100,310" in capsys.readouterr().out
    zoo.main(["--names", "MLP", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found == facts(BY_NAME["MLP"])
    assert found["norm_sites"] == 3
    assert found["small_parameters"] == 64 * 64 + 64 + 64 * 64 + 64 + 4 * 64 + 650
    with pytest.raises(UserError, match="`--names` must begin one of `article CNN`"):
        zoo.main(["--names", "LeNet"])
    with pytest.raises(UserError, match="leave out `--names`"):
        zoo.main(["--names", "MLP", "--write"])


def test_the_document_has_every_row_and_the_numbers_of_today():
    lines = zoo.MARKERS.split(zoo.DOCUMENT.read_text())[1].splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines if line.startswith("| ")}
    assert list(cells)[2:] == [row.name for row in ROWS]
    for name in EXACT:
        found, _ = trace(name)
        assert cells[name][2] == f"{found.parameters:,}"
        assert cells[name][5] == zoo.billions(found.products)
