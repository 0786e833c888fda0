"""Every architecture in its published sizes: what its traced program has, beside what is published."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from bnjax import linen as bnn
from experiments.config import ModelConfig
from experiments.measure.products import products
from experiments.models import (
    alexnet,
    article_cnn,
    bert,
    bn_inception,
    densenet,
    mlp,
    recurrent,
    resnet,
    transformer,
    vgg,
    xception,
)
from experiments.models.norms import NormChoice

TORCHVISION = "arXiv {}; torchvision"


class Row(NamedTuple):
    """An architecture in one size.

    Attributes:
      name: as papers call it.
      build: of its file.
      size: of its `SIZES`.
      norm: the one that it was published with.
      inputs: shapes and dtypes of a batch of one.
      small_inputs: those of the small variant.
      source: where it was published, and who counted.
      published: the number of parameters, as it is printed there; "" where there is none.
      published_products: 10^9 products in convolutions and matrix products, as it is printed there.
      small: the small variant, of `SIZES`.
      sizes: what else the model is built with.
    """

    name: str
    build: Callable[..., nn.Module]
    size: str
    norm: str
    inputs: Any
    small_inputs: Any
    source: str
    published: str = ""
    published_products: str = ""
    small: str = "small"
    sizes: dict[str, Any] = {}  # noqa: RUF012

    def model(self) -> nn.Module:
        """Its module."""
        return self.build(norm=NormChoice(self.norm), size=self.size, **self.sizes)

    def small_model(self) -> nn.Module:
        """That of the small variant."""
        return self.build(norm=NormChoice(self.norm), size=self.small)


def images(pixels: int, channels: int = 3) -> Any:
    """One image."""
    return jax.ShapeDtypeStruct((1, pixels, pixels, channels), jnp.float32)


def tokens(length: int) -> Any:
    """One sequence."""
    return jax.ShapeDtypeStruct((1, length), jnp.int32)


def pair(length: int) -> Any:
    """Two sequences."""
    return {"source": tokens(length), "target": tokens(length)}


def _article(*, norm: NormChoice, size: str) -> nn.Module:
    shape = {"28": (28, 28, 1), "small": (8, 8, 1)}[size]
    return article_cnn.LinenCNN(ModelConfig(norm=norm.name), shape, 10, {})


DIGIT, IMAGE = images(8, 1), images(224)


def _resnet(size: str, published: str, products: str) -> Row:
    source = TORCHVISION.format("1512.03385")
    return Row(f"ResNet-{size}", resnet.build, size, "batch", IMAGE, images(32), source, published, products)


def _cifar(layers: int, published: str) -> Row:
    source = "arXiv 1512.03385, table 6"
    return Row(
        f"ResNet-{layers}, CIFAR", resnet.build, f"cifar{layers}", "batch", images(32), images(32), source, published
    )


def _vgg(size: str, norm: str, published: str, products: str) -> Row:
    name = f"VGG-{size}" + (", batch norm" if norm == "batch" else "")
    return Row(name, vgg.build, size, norm, IMAGE, DIGIT, TORCHVISION.format("1409.1556"), published, products)


def _densenet(size: str, published: str, products: str) -> Row:
    source = TORCHVISION.format("1608.06993")
    return Row(f"DenseNet-{size}", densenet.build, size, "batch", IMAGE, images(32), source, published, products)


def _cifar_densenet(name: str, size: str, published: str) -> Row:
    return Row(name, densenet.build, size, "batch", images(32), images(32), "arXiv 1608.06993, table 2", published)


def _transformer(size: str, published: str) -> Row:
    source = "arXiv 1706.03762, table 3"
    return Row(f"Transformer {size}", transformer.build, size, "layer", pair(64), pair(16), source, published)


def _bert(size: str, published: str) -> Row:
    source = "arXiv 1810.04805; transformers' `BertForPreTraining`"
    heads = {"next_sentence": True}
    return Row(f"BERT {size}", bert.build, size, "layer", tokens(512), tokens(32), source, published, sizes=heads)


ROWS = (
    Row("article CNN", _article, "28", "batch", images(28, 1), DIGIT, "the article"),
    Row("MLP", mlp.build, "ioffe", "batch", images(28, 1), DIGIT, "arXiv 1502.03167, section 4.1"),
    _resnet("18", "11,689,512", "1.814"),
    _resnet("34", "21,797,672", "3.664"),
    _resnet("50", "25,557,032", "4.089"),
    _resnet("101", "44,549,160", "7.801"),
    _resnet("152", "60,192,808", "11.514"),
    _cifar(20, "0.27 M"),
    _cifar(32, "0.46 M"),
    _cifar(44, "0.66 M"),
    _cifar(56, "0.85 M"),
    _cifar(110, "1.7 M"),
    _vgg("11", "none", "132,863,336", "7.609"),
    _vgg("13", "none", "133,047,848", "11.308"),
    _vgg("16", "none", "138,357,544", "15.470"),
    _vgg("19", "none", "143,667,240", "19.632"),
    _vgg("16", "batch", "138,365,992", "15.470"),
    Row(
        "AlexNet, two groups", alexnet.build, "two_groups", "lrn", images(227), images(28, 1),
        "Krizhevsky et al. 2012", "60 M",
    ),
    Row(
        "AlexNet, one column", alexnet.build, "one_column", "none", IMAGE, images(28, 1),
        TORCHVISION.format("1404.5997"), "61,100,840", "0.714",
    ),
    Row(
        "BN-Inception", bn_inception.build, "224", "batch", IMAGE, DIGIT,
        "arXiv 1502.03167, figure 5; pretrained-models.pytorch, without 10,016 biases that the norms cancel",
        "11,285,224",
    ),
    _densenet("121", "7,978,856", "2.834"),
    _densenet("161", "28,681,000", "7.728"),
    _densenet("169", "14,149,480", "3.360"),
    _densenet("201", "20,013,928", "4.291"),
    _cifar_densenet("DenseNet, 40 layers, k = 12", "cifar40", "1.0 M"),
    _cifar_densenet("DenseNet-BC, 100 layers, k = 12", "cifar100", "0.8 M"),
    Row(
        "Xception", xception.build, "299", "batch", images(299), DIGIT, "arXiv 1610.02357, table 3",
        "22,855,952", "8.4",
    ),
    _transformer("base", "65 M"),
    _transformer("big", "213 M"),
    _bert("base", "110,106,428"),
    _bert("large", "336,226,108"),
    Row("LSTM, by pixels", recurrent.build, "lstm", "batch", images(28, 1), DIGIT, "arXiv 1603.09025, section 5.1"),
    Row(
        "GRU, by pixels", recurrent.build, "gru", "layer", images(28, 1), DIGIT, "arXiv 1607.06450, supplement",
        small="small_gru",
    ),
)  # fmt: skip


class Traced(NamedTuple):
    """What the trace of a model's initialization has.

    Attributes:
      parameters: how many numbers are learned.
      products: multiplications in convolutions and matrix products of a forward pass.
      variables: all variables, as shapes and dtypes.
    """

    parameters: int
    products: int
    variables: Any


def traced(model: nn.Module, inputs: Any) -> Traced:
    """One trace of `model.init`: no memory, no time."""
    init = jax.jit(partial(model.init, train=False)).trace(jax.random.key(0), inputs)
    variables = init.out_info
    return Traced(sum(p.size for p in jax.tree.leaves(variables["params"])), products(init.jaxpr.jaxpr), variables)


def norm_sites(model: nn.Module, variables: Any, inputs: Any) -> list[str]:
    """The paths of the norms, in the order of their calls."""

    def call(model: nn.Module, x: Any) -> Any:
        return model(x, train=False)

    rows = bnn.summary(model, variables, inputs, call=call).rows
    return [row.path for row in rows]


def multiply_adds(model: nn.Module, variables: Any, inputs: Any) -> int:
    """Half of the floating-point operations that XLA counts in an evaluation, which is not compiled.

    It counts norms, activations and poolings, too, and leaves out products with the zeros of a padding. Of a loop it
    counts the body once.
    """
    lowered = jax.jit(partial(model.apply, train=False)).lower(variables, inputs)
    counted: Any = lowered.cost_analysis()
    return int(counted["flops"] / 2)


def facts(row: Row) -> dict[str, Any]:
    """A row as the command gives it."""
    model = row.model()
    found = traced(model, row.inputs)
    sites = [] if row.norm == "none" else norm_sites(model, found.variables, row.inputs)
    return {
        "name": row.name,
        "norm": row.norm,
        "parameters": found.parameters,
        "published": row.published,
        "norm_sites": len(sites),
        "products": found.products,
        "published_products": row.published_products,
        "multiply_adds": multiply_adds(model, found.variables, row.inputs),
        "small_parameters": traced(row.small_model(), row.small_inputs).parameters,
        "source": row.source,
    }
