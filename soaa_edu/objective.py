"""An objective keeps the model and the loss apart: Gauss-Newton and Fisher need the split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


def every_row(targets: Any) -> Any:
    """A weight of one for every row, ``(B,)``."""
    return jnp.ones(len(jax.tree.leaves(targets)[0]), jnp.float32)


@dataclass(frozen=True)
class Loss:
    """A mean loss that is the negative log-likelihood of a distribution over targets.

    An example is one target that counts: a row with one label, or each position of a sequence with
    a label of its own. Whatever divides by the number of examples asks ``weights`` for it.

    Attributes:
        mean: ``(outputs, targets) -> scalar``, the mean over all examples.
        sample: ``(key, outputs, targets) -> targets`` drawn from the model's own distribution;
            of the given targets only which of them count is kept.
        gradient_covariance: ``(outputs, targets, v) -> E[r rᵀ] v`` for each example, r being the
            gradient of the mean loss in that example's outputs and E over the model's own targets.
        weights: ``targets -> `` one for each target that counts and zero for each other, in
            float32, ``(B,)`` or ``(B, T)``. By default every row counts.
    """

    mean: Callable[[Any, Any], Any]
    sample: Callable[[Any, Any, Any], Any]
    gradient_covariance: Callable[[Any, Any, Any], Any]
    weights: Callable[[Any], Any] = every_row

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
    counted = counts(labels)
    classes = logits.shape[-1]
    known = (labels >= 0) & (labels < classes)
    index = jnp.where(counted, jnp.where(known, labels, classes), 0).astype(jnp.int32)[..., None]
    chosen = jnp.take_along_axis(logits, index, axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]
    surprise = jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0)
    return _mean_in_float32(surprise, counted)


def _mean_in_float32(values: Any, counted: Any) -> Any:
    """The mean of those that count, zero if none does, in the type of the values."""
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    count = jnp.maximum(jnp.sum(counted, dtype=wide.dtype), 1)
    return (jnp.sum(wide) / count).astype(values.dtype)


def _sample_labels(key: Any, logits: Any, labels: Any) -> Any:
    drawn = jax.random.categorical(key, logits).astype(labels.dtype)
    return jnp.where(counts(labels), drawn, labels)


def _softmax_covariance(logits: Any, labels: Any, v: Any) -> Any:
    """(diag(p) - p pᵀ) v / count² at every place that counts."""
    p = jax.nn.softmax(logits)
    covariance = p * (v - jnp.sum(p * v, axis=-1, keepdims=True))
    shares = _shares(counts(labels).astype(covariance.dtype))
    return shares[..., None] ** 2 * covariance


def counts(labels: Any) -> Any:
    """Which labels count: all but those of -1, which unsigned types don't have."""
    if jnp.issubdtype(labels.dtype, jnp.unsignedinteger):
        return jnp.ones(labels.shape, bool)
    return labels != -1


def _weights_of_labels(labels: Any) -> Any:
    return counts(jnp.asarray(labels)).astype(jnp.float32)


def _shares(weights: Any) -> Any:
    """Each weight over their sum: a count may be larger than its square's type holds."""
    wide = jnp.promote_types(weights.dtype, jnp.float32)
    return weights / jnp.maximum(jnp.sum(weights, dtype=wide), 1)


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
    halves = 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)
    return _mean_in_float32(halves, jnp.ones(halves.shape, bool))


def _sample_gaussian(key: Any, outputs: Any, targets: Any) -> Any:
    return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)


def _gaussian_covariance(outputs: Any, targets: Any, v: Any) -> Any:
    count = float(outputs.size // outputs.shape[-1])
    return v / count / count


def _weights_of_vectors(targets: Any) -> Any:
    return jnp.ones(jnp.shape(targets)[:-1], jnp.float32)


def weights_of(loss: Any, targets: Any) -> Any:
    """One for each target that counts and zero for each other; every row if the loss can't say."""
    return loss.weights(targets) if isinstance(loss, Loss) else every_row(targets)


def count_examples(loss: Any, targets: Any) -> Any:
    """How many targets count, as a float, and one where none does."""
    return jnp.maximum(jnp.sum(weights_of(loss, targets)), 1)


softmax_cross_entropy = Loss(
    _cross_entropy, _sample_labels, _softmax_covariance, _weights_of_labels
)
"""``softmax_cross_entropy(logits, labels)``: the mean of -log softmax(logits)[label], with logits
``(..., C)`` and whole-number labels ``(...)``; a label of -1 is ignored. A ``ValueError`` says
when the shapes don't fit."""

squared_error = Loss(_half_square, _sample_gaussian, _gaussian_covariance, _weights_of_vectors)
"""``squared_error(outputs, targets)``: ½ ‖output - target‖², the mean over every axis but the last,
both ``(..., C)``; all of them count. Its distribution is the Gaussian of unit variance around the
outputs."""
