"""With modules of PyTorch and models of Keras at hand. A section of `.ci/run` runs this where both are installed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from bnjax import linen as bl
from bnjax import nnx as bx
from tests.convert import sources  # before Keras: it says by what Keras computes

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

from tests.convert.cases import Chain, Compact, flat  # noqa: E402
from tests.convert.resnet import resnet18  # noqa: E402
from tests.convert.table import ALL, error  # noqa: E402
from tests.kit import convnets_linen, convnets_nnx  # noqa: E402

tn = torch.nn


@pytest.fixture(autouse=True)
def _as_keras_needs_it():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")  # which is read all the same
@pytest.mark.parametrize(("direction", "name"), ALL)
def test_every_layout_in_every_direction(direction, name):
    assert error(direction, name) < 1e-6


def resnet(size):
    """ResNet-18 of PyTorch with few channels, as after a training, and a batch."""
    net = sources.torch_module(lambda t: resnet18(t, 8, 10))
    return net, np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)


def evaluate(model, x):
    return model(x, train=False)


FLAX = convnets_linen.ResNet(convnets_linen.Basic, 8, (2, 2, 2, 2))


def shapes(model, x, call=lambda model, x: model(x)):
    return jax.eval_shape(nn.init(call, model), jax.random.key(0), x)


def test_resnet_18_where_the_paddings_agree_and_back(tmp_path):
    """At 65 pixels every SAME is PyTorch's padding."""
    net, x = resnet(65)
    variables, report = bl.from_torch(net, FLAX, shapes(FLAX, x, evaluate), x, call=evaluate)
    assert len(report.done) == 41
    assert not report.refused
    assert report["Basic_2/norm_proj"].evidence["from"] == "layer2.0.downsample.1"
    assert max(row.evidence["error"] for row in report) < 1e-5
    want = sources.torch_output(net, x)
    np.testing.assert_allclose(FLAX.apply(variables, x, train=False), want, rtol=0, atol=1e-5 * np.abs(want).max())

    from safetensors.numpy import save_file

    back = bl.to_torch(FLAX, variables, x, call=evaluate, rename=report)
    save_file(back, tmp_path / "back.safetensors")
    from safetensors.torch import load_file

    new, old = load_file(tmp_path / "back.safetensors"), net.state_dict()
    assert new.keys() == old.keys()
    assert all(new[name].dtype == old[name].dtype and torch.equal(new[name], old[name]) for name in old)
    net.load_state_dict(new)


class Padded(nn.Module):
    """Flax's ResNet, with PyTorch's padding where the pooling is; the convolutions are SAME."""

    @nn.compact
    def __call__(self, x):
        conv, norm = partial(nn.Conv, use_bias=False), partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(conv(8, (7, 7), (2, 2), padding=3)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for n in range(8):
            strides = (2, 2) if n in (2, 4, 6) else (1, 1)
            x = convnets_linen.Basic(8 * 2 ** (n // 2), conv, norm, strides)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def test_resnet_18_where_they_differ_is_named():
    net, x = resnet(64)
    words = (
        r"'Basic_0/Conv_0' and, in the source, of 'layer1.0.conv1', which differ by [2-9]\..e-01 .*Their inputs "
        r"differ already.*'maxpool': MaxPool2d.*write `padding=\(\(1, 1\), \(1, 1\)\)`"
    )
    with pytest.raises(ValueError, match=words):
        bl.from_torch(net, FLAX, shapes(FLAX, x, evaluate), x, call=evaluate)
    words = (
        r"'Basic_2/Conv_0' and, in the source, of 'layer2.0.conv1'.*Their inputs agree.*padding is 'SAME', and there "
        r"it is \(\(1, 1\), \(1, 1\)\): write `padding=\(\(1, 1\), \(1, 1\)\)`"
    )
    with pytest.raises(ValueError, match=words):
        bl.from_torch(net, Padded(), shapes(Padded(), x), x)


def test_resnet_18_in_nnx():
    net, x = resnet(65)
    model = convnets_nnx.ResNet(nnx.Rngs(0), 8, (2, 2, 2, 2))
    report = bx.from_torch(net, model, x)
    model.eval()
    want = sources.torch_output(net, x)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(model, x), want, rtol=0, atol=1e-5 * np.abs(want).max())
    back = bx.to_torch(model, x, rename=report)
    assert back.keys() == net.state_dict().keys()
    assert all(np.array_equal(back[name], value.numpy()) for name, value in net.state_dict().items())


class Lifted(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.remat(nn.Dense)(4, name="remat")(x)
        lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        both = nn.vmap(nn.Dense, in_axes=None, axis_size=2, **lift)(4, name="both")(x)
        return nn.jit(nn.Dense)(3, name="jit")(nn.tanh(both.sum(0)))


class Branches(tn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.both = tn.Linear(4, 4), tn.ModuleList([tn.Linear(4, 4), tn.Linear(4, 4)])
        self.last = tn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.tanh(self.both[0](x) + self.both[1](x)))


def test_layers_under_transformations_are_compared_one_by_one():
    net, x = sources.torch_module(lambda _: Branches()), IMAGE[:, 0, 0]
    variables, report = bl.from_torch(net, Lifted(), shapes(Lifted(), x), x)
    assert all(row.evidence["error"] < 1e-6 for row in report)
    assert report["both"].evidence["from"] == "both.0, both.1"
    np.testing.assert_allclose(Lifted().apply(variables, x), sources.torch_output(net, x), atol=1e-6)


class Swapped(tn.Module):
    """Defined in another order than called, and used in yet another way."""

    def __init__(self):
        super().__init__()
        self.later, self.first = tn.Conv2d(4, 4, 3, padding=1), tn.Conv2d(4, 4, 3, padding=1)
        self.drop = tn.Dropout()

    def forward(self, x):
        return self.later(self.drop(torch.relu(self.first(x))))


IMAGE = np.random.default_rng(1).normal(size=(2, 6, 5, 4)).astype(np.float32)
ROW = IMAGE[:, 0, 0]
TWO = Compact(lambda x: nn.Conv(4, (3, 3))(nn.relu(nn.Conv(4, (3, 3))(x))))


def test_calls_decide_and_not_the_order_of_definition():
    net = sources.torch_module(lambda _: Swapped()).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    variables, report = bl.from_torch(net, TWO, shapes(TWO, IMAGE), IMAGE)
    assert [row.evidence["from"] for row in report] == ["first", "later"]
    # The module is as it was.
    assert net.training
    assert net.drop.training
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    output = sources.torch_output(net.eval(), IMAGE)
    with pytest.raises(ValueError, match="the output differs by"):
        bl.from_torch(net.state_dict(), TWO, shapes(TWO, IMAGE), IMAGE, expect=(IMAGE, output))
    # The outer call is that of the module that is made first.
    names = {"first.weight": "params/Conv_1/kernel", "later.weight": "params/Conv_0/kernel"}
    names |= {"first.bias": "params/Conv_1/bias", "later.bias": "params/Conv_0/bias"}
    renamed, _ = bl.from_torch(net.state_dict(), TWO, shapes(TWO, IMAGE), IMAGE, rename=names.get)
    jax.tree.map(np.testing.assert_array_equal, renamed, variables)


class Shared(tn.Module):
    def __init__(self):
        super().__init__()
        self.a = self.b = tn.Linear(4, 4)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class FlaxShared(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4)
        return dense(nn.tanh(dense(x)))


def test_what_is_shared_is_there_once():
    net, x = sources.torch_module(lambda _: Shared()), IMAGE[:, 0, 0]
    variables, report = bl.from_torch(net, FlaxShared(), shapes(FlaxShared(), x), x)
    assert report.done == ("Dense_0",)
    np.testing.assert_allclose(FlaxShared().apply(variables, x), sources.torch_output(net, x), atol=1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (tn.Conv2d(4, 3, 3, padding=2, dilation=2), lambda x: nn.Conv(3, (3, 3))(x), "kernel_dilation="),
        (tn.LayerNorm(4, eps=1e-1), lambda x: nn.LayerNorm()(x), "epsilon is 1e-06, and there it is 0.1: write"),
        (tn.Sequential(tn.Conv2d(4, 4, 1), tn.Tanh(), tn.Conv2d(4, 3, 1)),
         lambda x: nn.Conv(3, (1, 1))(nn.relu(nn.Conv(4, (1, 1))(x))), r"the source has '1': Tanh\(\)"),
        (tn.Sequential(tn.Conv2d(4, 4, 1), tn.Tanh()), lambda x: nn.relu(nn.Conv(4, (1, 1))(x)), "do something else"),
    ],
    ids=["dilation", "epsilon", "between", "after"],
)  # fmt: skip
def test_the_first_difference_is_named(theirs, ours, words):
    x = IMAGE if not isinstance(theirs, tn.LayerNorm) else IMAGE[:, 0, 0]
    model = Compact(ours)
    with pytest.raises(ValueError, match=words):
        bl.from_torch(theirs, model, shapes(model, x), x)


def test_settings_that_change_no_output_are_said():
    model = Compact(lambda x: nn.BatchNorm(use_running_average=True, epsilon=2e-5)(x))
    _, report = bl.from_torch(tn.BatchNorm2d(4), model, shapes(model, IMAGE), IMAGE)
    said = report["BatchNorm_0"].reason
    assert "write `epsilon=1e-05`" in said
    assert "write `momentum=0.9`" in said
    assert "unbiased" in said


def test_a_new_head_and_what_comes_before_it_is_compared():
    net = sources.torch_module(lambda t: t.Sequential(t.Conv2d(4, 4, 3, padding=1), t.Flatten(), t.Linear(120, 10)))
    model = Compact(lambda x: nn.Dense(7)(flat(nn.Conv(4, (3, 3))(x))))
    variables = model.init(jax.random.key(0), IMAGE)
    new, report = bl.from_torch(net, model, variables, IMAGE, keep="Dense_0")
    assert report.done == ("Conv_0",)
    assert report["Conv_0"].evidence["error"] < 1e-6
    assert report.refused == ("Dense_0", "source: 2")
    assert new["params"]["Dense_0"]["kernel"] is variables["params"]["Dense_0"]["kernel"]


class ByFunctions(tn.Module):
    """Layers that are not called, in another order than that of their definition."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = tn.Linear(4, 4), tn.Linear(4, 4), tn.Linear(4, 3)

    def forward(self, x):
        for layer in (self.b, self.a):
            x = torch.tanh(tn.functional.linear(x, layer.weight, layer.bias))
        return self.head(x)


def test_layers_that_are_not_called_are_seen_in_what_follows():
    net = ByFunctions()
    net.a, net.b = net.b, net.a
    last = lambda x: nn.Dense(7, name="new")(nn.Dense(3)(nn.tanh(nn.Dense(4)(nn.tanh(nn.Dense(4)(x))))))  # noqa: E731
    variables = Compact(last).init(jax.random.key(0), ROW)
    with pytest.raises(ValueError, match="The first ones that differ are those of 'Dense_0'"):
        bl.from_torch(ByFunctions(), Compact(last), variables, ROW, keep="^params/new/")
    net.forward = lambda x: net.head(torch.tanh(tn.functional.linear(torch.tanh(net.a(x)), net.b.weight, net.b.bias)))
    new, _ = bl.from_torch(net, Compact(last), variables, ROW, keep="^params/new/")
    np.testing.assert_array_equal(new["params"]["Dense_1"]["kernel"], net.b.weight.detach().numpy().T)


def test_layers_that_are_not_called_are_not_taken_to_be_in_order():
    model = Compact(lambda x: nn.Dense(7, name="new")(nn.tanh(nn.Dense(4)(nn.tanh(nn.Dense(4)(x))))))
    with pytest.raises(ValueError, match=r"PyTorch does not call all of them .*Give `expect=\(batch, output\)`"):
        bl.from_torch(ByFunctions(), model, model.init(jax.random.key(0), ROW), ROW, keep="^params/new/")


def test_layers_of_one_input_before_a_new_head_need_rename():
    """Each fits in the place of the other; a layer after them that is compared tells."""

    class Gated(tn.Module):
        def __init__(self):
            super().__init__()
            self.v, self.k, self.fc = tn.Linear(4, 4), tn.Linear(4, 4), tn.Linear(4, 3)

        def forward(self, x):
            v, k = self.v(x), self.k(x)
            return self.fc(torch.tanh(k) * v)

    def gated(x):
        a, b = nn.Dense(4, name="a")(x), nn.Dense(4, name="b")(x)
        return nn.tanh(a) * b

    net, model = Gated(), Compact(lambda x: nn.Dense(7, name="new")(gated(x)))
    variables = model.init(jax.random.key(0), ROW)
    with pytest.raises(ValueError, match="have the same input, so that each fits"):
        bl.from_torch(net, model, variables, ROW, keep="^params/new/")
    names = {"k": "a", "v": "b"}

    def rename(name):
        layer, what = name.split(".")
        return f"params/{names[layer]}/{'kernel' if what == 'weight' else what}" if layer in names else None

    new, _ = bl.from_torch(net, model, variables, ROW, keep="^params/new/", rename=rename)
    np.testing.assert_array_equal(new["params"]["a"]["kernel"], net.k.weight.detach().numpy().T)


def test_outputs_that_cannot_be_compared_are_said():
    net = sources.torch_module(lambda t: t.Linear(4, 3))
    both = type("Both", (tn.Module,), {"forward": lambda self, x: (self.fc(x), x)})()
    both.fc = net
    model = Compact(lambda x: nn.Dense(3)(x))
    _, report = bl.from_torch(both, model, shapes(model, ROW), ROW)
    assert [(row.path, row.done) for row in report] == [("Dense_0", True), ("(output)", False)]


def test_a_model_in_training_mode_is_named():
    model = Compact(lambda x: nn.BatchNorm(use_running_average=False)(x))
    with pytest.raises(ValueError, match=r"It normalizes by the batch, .* `call` must run the model as for evaluation"):
        bl.from_torch(sources.torch_module(lambda t: t.BatchNorm2d(4)), model, shapes(model, IMAGE), IMAGE)


@pytest.mark.parametrize("change", [lambda t: t.to("meta"), torch.Tensor.to_sparse], ids=["meta", "sparse"])
def test_tensors_that_numpy_cannot_have(change):
    state = {name: change(value) for name, value in tn.Linear(4, 3).state_dict().items()}
    model = Compact(lambda x: nn.Dense(3)(x))
    with pytest.raises(ValueError, match="`source` has at 'weight' a tensor that numpy cannot have"):
        bl.from_torch(state, model, shapes(model, ROW), ROW)


class Attention(tn.Module):
    """Its projections have one input and one shape, and are called in another order."""

    def __init__(self):
        super().__init__()
        self.value, self.key, self.query = (tn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        value, key, query = self.value(x), self.key(x), self.query(x)
        return torch.softmax(query @ key.T, -1) @ value


class FlaxAttention(nn.Module):
    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        query, key, value = (nn.Dense(4, name=name)(x) for name in self.names)
        return nn.softmax(query @ key.T) @ value


def test_parallel_layers_that_only_names_tell_apart():
    net, x = sources.torch_module(lambda _: Attention()), IMAGE[:, 0, 0]
    model = FlaxAttention(("query", "key", "value"))
    variables, _ = bl.from_torch(net, model, shapes(model, x), x)
    np.testing.assert_allclose(model.apply(variables, x), sources.torch_output(net, x), atol=1e-6)
    model = FlaxAttention(("a", "b", "c"))
    with pytest.raises(ValueError, match=r"called in another order, which `rename` puts right. The output differs by"):
        bl.from_torch(net, model, shapes(model, x), x)


def test_a_model_of_keras_that_is_not_built_with_channels_first():
    net = keras.Sequential([keras.layers.Conv2D(3, 3, padding="same", data_format="channels_first")])
    model = Compact(lambda x: nn.Conv(3, (3, 3))(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    variables, _ = bl.from_keras(net, model, shapes(model, IMAGE), IMAGE)
    np.testing.assert_allclose(model.apply(variables, IMAGE), net(IMAGE), atol=1e-6)


def test_a_module_that_does_not_take_the_example():
    with pytest.raises(ValueError, match="`example` must be an array if `source` is a module"):
        bl.from_torch(tn.Linear(4, 4), TWO, shapes(TWO, IMAGE), jax.ShapeDtypeStruct(IMAGE.shape, IMAGE.dtype))
    with pytest.raises(ValueError, match="or a module, but it is a type"):
        bl.from_torch(tn.Linear, TWO, shapes(TWO, IMAGE), IMAGE)
    with pytest.raises(ValueError, match=r"(?s)`source` does not take `example`.*Give `source.state_dict\(\)`"):
        bl.from_torch(tn.Bilinear(4, 4, 3), TWO, shapes(TWO, IMAGE), IMAGE)


def test_bfloat16_of_pytorch_and_of_the_model():
    net = sources.torch_module(lambda t: t.Conv2d(4, 3, 3, padding=1)).to(torch.bfloat16)
    model = Compact(lambda x: nn.Conv(3, (3, 3), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)(x))
    variables, report = bl.from_torch(net, model, shapes(model, IMAGE), IMAGE)
    kernel = variables["params"]["Conv_0"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert report["Conv_0"].evidence["error"] < 0.02
    want = net.weight.detach().float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel.astype(jnp.float32), want)


def keras_resnet():
    """A small ResNet, as Keras would have it."""
    k = keras.layers
    x = inputs = keras.Input((16, 16, 3))
    x = k.ReLU()(k.BatchNormalization()(k.Conv2D(4, 3, padding="same", use_bias=False)(x)))
    for filters, strides in ((4, 1), (8, 2)):
        y = k.ReLU()(k.BatchNormalization()(k.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)))
        y = k.BatchNormalization()(k.Conv2D(filters, 3, padding="same", use_bias=False)(y))
        short = x if strides == 1 else k.BatchNormalization()(k.Conv2D(filters, 1, strides, use_bias=False)(x))
        x = k.ReLU()(k.Add()([short, y]))
    return keras.Model(inputs, k.Dense(5, activation="softmax")(k.GlobalAveragePooling2D()(x)))


class KerasNet(nn.Module):
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x):
        conv, norm = partial(nn.Conv, use_bias=False), partial(nn.BatchNorm, True, epsilon=self.epsilon)
        x = nn.relu(norm()(conv(4, (3, 3))(x)))
        for filters, strides in ((4, (1, 1)), (8, (2, 2))):
            x = convnets_linen.Basic(filters, conv, norm, strides)(x)
        return nn.softmax(nn.Dense(5)(x.mean((1, 2))))


def test_a_resnet_of_keras():
    net = keras_resnet()
    sources.train_keras(net)
    x = np.random.default_rng(2).normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables, report = bl.from_keras(net, KerasNet(), shapes(KerasNet(), x), x)
    assert not report.refused
    np.testing.assert_allclose(KerasNet().apply(variables, x), net(x), atol=1e-6)
    assert not any("call" in vars(layer) or "noted" in repr(vars(layer).get("activation")) for layer in net.layers)
    for v in net.weights:
        v.assign(v.value * 0.01 if "variance" in v.path else v.value)
    with pytest.raises(ValueError, match=r"epsilon is 1e-05, and there it is 0.001: write `epsilon=0.001`"):
        bl.from_keras(net, KerasNet(1e-5), shapes(KerasNet(), x), x)


def test_a_model_of_keras_in_another_order_in_nnx():
    k = keras.layers
    first, second = k.Dense(4), k.Dense(4)

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.second, self.first = second, first

        def call(self, x):
            return self.second(keras.ops.tanh(self.first(x)))

    net, x = Model(), IMAGE[:, 0, 0]
    want = np.asarray(net(x))
    model = Chain(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(4, 4, rngs=nnx.Rngs(1)))
    bx.from_keras(net, model, x)
    np.testing.assert_allclose(model(x), want, atol=1e-6)


def test_flax_and_pytorch_norms_that_are_no_layers_of_flax():
    """A module of PyTorch by somebody else, whose weight is used as `1 + weight`."""

    class Gemma(tn.Module):
        def __init__(self):
            super().__init__()
            self.weight = tn.Parameter(torch.tensor([0.5, -0.25, 0.0, 0.1]))

        def forward(self, x):
            return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    model, x = Compact(lambda x: bl.RMSNorm()(x)), IMAGE[:, 0, 0]
    net = Gemma()
    variables, report = bl.from_torch(net, model, shapes(model, x), x)
    np.testing.assert_allclose(model.apply(variables, x), sources.torch_output(net, x), atol=1e-6)
    back = bl.to_torch(model, variables, x, rename=report)
    np.testing.assert_allclose(back["weight"], net.weight.detach().numpy(), atol=1e-7)
