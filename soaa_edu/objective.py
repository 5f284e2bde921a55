"""An objective keeps the model and the loss apart: Gauss-Newton and Fisher need the split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Loss:
    """A mean loss that is the negative log-likelihood of a distribution over targets.

    Attributes:
        mean: ``(outputs, targets) -> scalar``, the mean over all places that count.
        sample: ``(key, outputs, targets) -> targets`` drawn from the model's own distribution;
            of the given targets only which places count is kept.
        gradient_covariance: ``(outputs, targets, v) -> E[r rᵀ] v`` for each example, r being the
            gradient of the mean loss in that example's outputs and E over the model's own targets.
    """

    mean: Callable[[Any, Any], Any]
    sample: Callable[[Any, Any, Any], Any]
    gradient_covariance: Callable[[Any, Any, Any], Any]

    def __call__(self, outputs: Any, targets: Any) -> Any:
        """The mean loss."""
        return self.mean(outputs, targets)


@dataclass(frozen=True)
class Objective:
    """The mean loss of a model on a batch: ``objective(params, (inputs, targets)) -> scalar``.

    Attributes:
        model: ``(params, inputs) -> outputs``, a ``Model`` or any plain function.
        loss: ``(outputs, targets) -> scalar``, a mean over the batch.
    """

    model: Callable[[Any, Any], Any]
    loss: Callable[[Any, Any], Any]

    def __call__(self, params: Any, batch: Any) -> Any:
        """The mean loss of the model's outputs on a batch."""
        inputs, targets = batch
        return self.loss(self.model(params, inputs), targets)


def _cross_entropy(logits: Any, labels: Any) -> Any:
    """Mean of -log softmax(logits)[label] over all labels but those of -1, which are ignored.

    Args:
        logits: ``(..., C)``.
        labels: whole numbers ``(...)`` from 0 to C - 1, or -1. Others give ``nan``.

    Raises:
        ValueError: the shapes don't fit, or the labels are not whole numbers.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"logits {logits.shape} need whole-number labels of shape {logits.shape[:-1]}, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    index = jnp.where(labels < 0, logits.shape[-1], labels)[..., None]
    chosen = jnp.take_along_axis(logits, index, axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]
    surprise = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.sum(jnp.where(counts(labels), surprise, 0)) / _count(labels)


def _sample_labels(key: Any, logits: Any, labels: Any) -> Any:
    drawn = jax.random.categorical(key, logits).astype(labels.dtype)
    return jnp.where(counts(labels), drawn, labels)


def _softmax_covariance(logits: Any, labels: Any, v: Any) -> Any:
    """(diag(p) - p pᵀ) v / count² at every place that counts."""
    p = jax.nn.softmax(logits)
    covariance = p * (v - jnp.sum(p * v, axis=-1, keepdims=True))
    return jnp.where(counts(labels)[..., None], covariance, 0) / _count(labels) ** 2


def counts(labels: Any) -> Any:
    """Which labels count: all but those of -1, which unsigned types don't have."""
    return labels.astype(jnp.int32) != -1


def _count(labels: Any) -> Any:
    return jnp.maximum(jnp.sum(counts(labels)), 1)


def _half_square(outputs: Any, targets: Any) -> Any:
    """½ ‖output - target‖², the mean over every axis but the last.

    Args:
        outputs: ``(..., C)``.
        targets: ``(..., C)``.

    Raises:
        ValueError: the shapes differ.
    """
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs {outputs.shape} and targets {targets.shape} must have one shape: "
            "give scalar targets a last axis of length one"
        )
    return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, axis=-1))


def _sample_gaussian(key: Any, outputs: Any, targets: Any) -> Any:
    return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)


def _gaussian_covariance(outputs: Any, targets: Any, v: Any) -> Any:
    count = outputs.size // outputs.shape[-1]
    return v / count**2


softmax_cross_entropy = Loss(_cross_entropy, _sample_labels, _softmax_covariance)
"""``softmax_cross_entropy(logits, labels)``: the mean of -log softmax(logits)[label], with logits
``(..., C)`` and whole-number labels ``(...)``; a label of -1 is ignored. A ``ValueError`` says
when the shapes don't fit."""

squared_error = Loss(_half_square, _sample_gaussian, _gaussian_covariance)
"""``squared_error(outputs, targets)``: ½ ‖output - target‖², the mean over every axis but the last,
both ``(..., C)``. Its distribution is the Gaussian of unit variance around the outputs."""
