"""The three networks on which SOAA is taken apart and raced, each with its data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from soaa_edu.data import Dataset, mnist, text
from soaa_edu.models import decoder, encoder, mlp
from soaa_edu.objective import Objective, softmax_cross_entropy

NETWORKS = {
    "mlp": "MLP on MNIST",
    "encoder": "encoder, masked characters",
    "decoder": "decoder, next character",
}

SHORT = {"mlp": "MLP", "encoder": "encoder", "decoder": "decoder"}


class Size(NamedTuple):
    """How large networks and data are.

    Attributes:
        images: of MNIST, ``None`` for all.
        image_epochs: passes over them.
        image_batch: images a step.
        hidden: the widths of the MLP's hidden layers.
        characters: of the synthetic language, each seen once.
        length: characters in a row.
        text_batch: rows a step.
        width: of a token in the encoder and the decoder.
        depth: of both.
    """

    images: int | None
    image_epochs: int
    image_batch: int
    hidden: tuple[int, ...]
    characters: int
    length: int
    text_batch: int
    width: int
    depth: int


SIZES = {
    "quick": Size(2048, 2, 128, (32,), 20_480, 32, 16, 16, 1),
    "laptop": Size(None, 3, 512, (256, 256), 409_600, 64, 16, 32, 2),
    "gpu": Size(None, 20, 512, (1024, 1024), 10_000_000, 256, 64, 256, 6),
}
"""What each scale trains on, where a study does not say otherwise."""


class Task(NamedTuple):
    """A network, its loss and its data."""

    objective: Objective
    data: Dataset
    epochs: int
    batch_size: int

    def init(self) -> Any:
        """Parameters at the start, always the same."""
        model: Any = self.objective.model
        return model.init(jax.random.key(0))

    @property
    def steps(self) -> int:
        """Of a whole run."""
        return self.epochs * (len(self.data.train[0]) // self.batch_size)


def task(name: str, size: Size) -> Task:
    """One of the three, at a size."""
    if name == "mlp":
        model = mlp([784, *size.hidden, 10], jnp.tanh)
        data = mnist(size.images)
        return Task(
            Objective(model, softmax_cross_entropy), data, size.image_epochs, size.image_batch
        )
    data = text.synthetic(
        size.characters, length=size.length, test_characters=max(size.characters // 20, 1000)
    )
    shape: dict[str, Any] = {"width": size.width, "depth": size.depth}
    if name == "encoder":
        data = text.masked(data)
        model = encoder(text.VOCABULARY, length=size.length, **shape)
    else:
        model = decoder(text.VOCABULARY, **shape)
    return Task(Objective(model, softmax_cross_entropy), data, 1, size.text_batch)
