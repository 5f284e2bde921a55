"""The three networks on which SOAA is taken apart and raced, each with its data."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from soaa_edu.data import mnist, text
from soaa_edu.models import decoder, encoder, mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.studies.race import Task

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


def task(name: str, size: Size, stretches: int = 1) -> Task:
    """One of the three, at a size; the last of so many stretches of its steps counts."""
    if name == "mlp":
        model = mlp([784, *size.hidden, 10], jnp.tanh)
        data, epochs, batch_size = mnist(size.images), size.image_epochs, size.image_batch
    else:
        data = text.synthetic(
            size.characters, length=size.length, test_characters=max(size.characters // 20, 1000)
        )
        shape: dict[str, Any] = {"width": size.width, "depth": size.depth}
        if name == "encoder":
            data = text.masked(data)
            model = encoder(text.VOCABULARY, length=size.length, **shape)
        else:
            model = decoder(text.VOCABULARY, **shape)
        epochs, batch_size = 1, size.text_batch
    objective = Objective(model, softmax_cross_entropy)
    given = Task({"network": name}, objective, lambda: data, len(data.train[0]), epochs, batch_size)
    return given._replace(last=given.steps // stretches)
