"""Any method for a network with dropout."""

from typing import Any

import jax

from soaa_edu.models.draws import Keyed
from soaa_edu.optimizers.protocol import Optimizer


def with_dropout(optimizer: Optimizer, evaluation: Any = None) -> Optimizer:
    """The same method, which gives each example of a batch a key of its own at every step.

    Gradient, factors, products with the curvature and the loss after the step all see the same
    masks (Srivastava et al. 2014).

    Args:
        optimizer: of the objective of a model that draws, from one of the adapters, or of your own
            whose inputs are ``models.Keyed``.
        evaluation: an objective of the same network without dropout, for ``train`` to evaluate by.
    """

    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        inputs, targets = batch
        own, drawn = jax.random.split(key)
        keys = jax.random.split(drawn, len(jax.tree.leaves(inputs)[0]))
        return optimizer.step(params, state, (Keyed(inputs, keys), targets), own)

    return Optimizer(optimizer.init, step, evaluation)
