"""Networks that adapt to images without labels: what `bnjax` offers for that, as the studies of shifted data use it."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bnjax import linen as bnn
from experiments.lab.fitting import Examples, Variables, digits, fit
from experiments.lab.patches import PatchCNN
from experiments.models.norms import NormChoice

STEPS, BATCH, RATE = 400, 64, 0.01  # of training, by Adam
TENT_STEPS, TENT_BATCH, TENT_RATE = 50, 100, 5e-3  # likewise by Adam
WIDTHS, GROUPS = (16, 32), 4  # channels of the convolutions, and groups of them for group norm
PRIOR = 16  # the default of `bnjax.linen.adapt`
PRIORS = (0, PRIOR)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200)  # images to adapt to
CLASSES = (1, 2, 5, 10)  # in a batch
Batch = dict[str, Any]  # images, and which of them count


class Lesson(NamedTuple):
    """What a network learns, and for how long."""

    data: Callable[[], tuple[Examples, Examples]]
    """Images and classes, to learn from and held out."""
    steps: int = STEPS
    rate: float | optax.Schedule = RATE


DIGITS = Lesson(digits)


def network(norm: str) -> PatchCNN:
    """The network that learns the images."""
    return PatchCNN(NormChoice(norm, groups=GROUPS), WIDTHS)


def trained(norm: str, seeds: Sequence[int], lesson: Lesson = DIGITS) -> list[Variables]:
    """The variables of a network that has learned undamaged images, for each seed."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], _trained(norm, tuple(seeds), lesson)) for i in range(len(seeds))]


@functools.lru_cache(maxsize=8)
def _trained(norm: str, seeds: tuple[int, ...], lesson: Lesson) -> Variables:
    train, _ = lesson.data()
    optimizer = optax.adam(lesson.rate)

    def of_seed(seed: Array) -> Variables:
        return fit(network(norm), train, jax.random.key(seed), optimizer, steps=lesson.steps, batch=BATCH)[0]

    return jax.jit(jax.vmap(of_seed))(jnp.asarray(seeds))


def part_of(images: np.ndarray, chosen: Sequence[int] | np.ndarray) -> Batch:
    """A batch of all images in which only the chosen ones count: whatever their number, its program is the same."""
    return {"image": images, "counts": np.isin(np.arange(len(images)), chosen)}


def adapted(norm: str, variables: Variables, batch: Batch, prior: float) -> Variables:
    """The variables with statistics of a batch; the old ones weigh as much as `prior` examples."""
    stats, _ = bnn.adapt(network(norm), variables, [batch], call=_of_batch, valid=_counts, prior=prior)
    return {**variables, "batch_stats": stats}


def _of_batch(model: Any, batch: Batch) -> Any:
    return model(batch["image"], False)


def _counts(batch: Batch) -> Any:
    return batch["counts"]


def tented(norm: str, of_seeds: Sequence[Variables], images: np.ndarray, seeds: Sequence[int]) -> list[Variables]:
    """The variables of each seed after steps of TENT on batches that are drawn from the images."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_seeds)
    params = _tented(norm)(stacked, jnp.asarray(images), jnp.asarray(seeds))
    return [{**own, "params": jax.tree.map(lambda p, i=i: p[i], params)} for i, own in enumerate(of_seeds)]


@functools.cache
def _tented(norm: str) -> Any:
    def of_seed(variables: Variables, images: Array, seed: Array) -> Any:
        opt_state, step = bnn.tent(network(norm), variables, optax.adam(TENT_RATE), call=_of_images)

        def one(state: Any, key: Array) -> tuple[Any, None]:
            rows = jax.random.permutation(key, len(images))[:TENT_BATCH]
            _, params, opt_state = step(state[0], state[1], images[rows])
            return (params, opt_state), None

        begin = (variables["params"], opt_state)
        (params, _), _ = jax.lax.scan(one, begin, jax.random.split(jax.random.key(seed), TENT_STEPS))
        return params

    return jax.jit(jax.vmap(of_seed, (0, None, 0)))


def _of_images(model: Any, images: Array) -> Any:
    return model(images, False)


def wrong(norm: str, variables: Variables, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which images are taken for another class, by the running statistics."""
    return np.asarray(_logits(norm)(variables, images).argmax(-1) != labels)


@functools.cache
def _logits(norm: str) -> Any:
    return jax.jit(lambda variables, images: network(norm).apply(variables, images, False))


def few_classes(labels: np.ndarray, classes: int, seed: int) -> Iterator[np.ndarray]:
    """Which examples come together, where a batch has so many classes: a tenth of them in a batch, in any case.

    The ten classes are put in random groups of `classes`; the examples of a group are shuffled and cut.
    """
    random = np.random.RandomState(seed)
    for group in np.split(random.permutation(10), 10 // classes):
        yield from np.array_split(random.permutation(np.flatnonzero(np.isin(labels, group))), classes)


def by_method(
    norm: str, of_seeds: Sequence[Variables], images: np.ndarray, seeds: Sequence[int], tent: bool
) -> dict[str, Sequence[Variables]]:
    """The variables of each seed: as they are, adapted to the images, and after TENT, of what a norm can do."""
    found = {"as_is": of_seeds}
    if tent:
        found["tent"] = tented(norm, of_seeds, images, seeds)
    if norm != "batch":
        return found
    everything = part_of(images, range(len(images)))
    changed = {"adapted": of_seeds, "tent": found["tent"]}
    return found | {method: [adapted(norm, own, everything, PRIOR) for own in changed[method]] for method in changed}


def errors_by_method(
    norm: str, of_seeds: Sequence[Variables], images: np.ndarray, labels: np.ndarray, seeds: Sequence[int], tent: bool
) -> Iterator[tuple[int, str, float]]:
    """Seed, method and error, of all methods."""
    for method, variables in by_method(norm, of_seeds, images, seeds, tent).items():
        for seed, own in zip(seeds, variables, strict=True):
            yield seed, method, wrong(norm, own, images, labels).mean()


Errors = Iterator[tuple[dict[str, Any], float]]  # with the settings that each was measured with


def errors_with_few_images(variables: Variables, images: np.ndarray, labels: np.ndarray, seed: int) -> Errors:
    """The errors of batch norm on all images, with the statistics of a few of them."""
    yield {"method": "as_is"}, wrong("batch", variables, images, labels).mean()
    order = np.random.RandomState(seed).permutation(len(images))
    for size in SIZES:
        for prior in PRIORS:
            own = adapted("batch", variables, part_of(images, order[:size]), prior)
            yield {"method": "adapted", "images": size, "prior": prior}, wrong("batch", own, images, labels).mean()


def errors_with_few_classes(variables: Variables, images: np.ndarray, labels: np.ndarray, seed: int) -> Errors:
    """The errors of batch norm on all images, where each batch has its own statistics, and a part of the classes."""
    yield {"method": "as_is"}, wrong("batch", variables, images, labels).mean()
    for classes in CLASSES:
        for prior in PRIORS:
            errors = 0
            for rows in few_classes(labels, classes, seed):
                own = adapted("batch", variables, part_of(images, rows), prior)
                errors += wrong("batch", own, images, labels)[rows].sum()
            yield {"method": "adapted", "classes": classes, "prior": prior}, errors / len(labels)


FEW = {"images": errors_with_few_images, "classes": errors_with_few_classes}
