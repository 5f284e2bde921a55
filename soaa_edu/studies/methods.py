"""The methods of the book: what each is called, how it looks in a picture, and how it is built.

One table for all studies and chapters, so that a colour means one method everywhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
import optax.contrib

from soaa_edu.linear_solvers import CUBIC, QUINTIC
from soaa_edu.optimizers import (
    Optimizer,
    adam_8bit,
    ekfac,
    first_order,
    galore,
    hessian_free,
    kfac,
    kl_shampoo,
    newton,
    psgd,
    shampoo,
    soaa,
    soap,
    tadam,
    trust_region,
)
from soaa_edu.plotting import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
)


def _look(label: str, color: str, linestyle: str = "-") -> dict[str, Any]:
    return {"label": label, "color": color, "linestyle": linestyle}


METHODS: dict[str, dict[str, Any]] = {
    "gradient_descent": _look("Gradient descent", BLUE, "-."),
    "sgd": _look("SGD", SKY, "--"),
    "sgd_at_0.1": _look("SGD, 0.1", SKY),
    "sgd_at_0.5/4": _look("SGD, 0.5/4", SKY, "-."),
    "sgd_at_0.5/32": _look("SGD, 0.5/32", SKY, ":"),
    "adam": _look("Adam", BLACK, "--"),
    "adamw": _look("AdamW", BLACK, ":"),
    "adam_cosine": _look("Adam, cosine schedule", BLACK, "-."),
    "adam_8bit": _look("8-bit Adam", SKY, ":"),
    "galore": _look("GaLore", GREEN, ":"),
    "newton": _look("Newton, λ = 32", VERMILLION),
    "newton_undamped": _look("Newton, λ = 0", PURPLE),
    "hessian_free": _look("Hessian-free, λ = 32", ORANGE),
    "gauss_newton_at_4": _look("Gauss-Newton, λ = 4", GREEN),
    "gauss_newton": _look("Gauss-Newton", GREEN, "--"),
    "gauss_newton_dense": _look("Gauss-Newton, solved exactly", VERMILLION),
    "levenberg_marquardt": _look("Gauss-Newton, Levenberg-Marquardt", PURPLE, "-."),
    "trust_region": _look("Newton-Lanczos trust region", VERMILLION, ":"),
    "cat": _look("CAT, first radius", BLUE),
    "gauss_newton_layers": _look("Gauss-Newton, layer by layer", ORANGE, "-."),
    "lbfgs": _look("L-BFGS", PURPLE, "--"),
    "kfac": _look("K-FAC", BLUE),
    "ekfac": _look("EKFAC", BLUE, "--"),
    "kfac_fresh": _look("K-FAC, inverting at every step", BLUE, ":"),
    "shampoo": _look("Shampoo", VERMILLION),
    "shampoo_plain": _look("Shampoo, no grafting", VERMILLION, ":"),
    "kl_shampoo": _look("KL-Shampoo", VERMILLION, "-."),
    "muon": _look("Muon", VERMILLION, "--"),
    "shampoo_without_memory": _look("Shampoo without memory", SKY, "-."),
    "soap": _look("SOAP", GREEN),
    "psgd": _look("PSGD", PURPLE),
    "sophia": _look("Sophia", PURPLE, ":"),
    "soaa": _look("SOAA", ORANGE),
    "soaa_still": _look("SOAA, dt = 1", BLUE, ":"),
    "soaa_sherman_morrison": _look("SOAA, Sherman-Morrison", VERMILLION),
    "soaa_second_moment": _look("SOAA, v = s", SKY),
    "soaa_gamma_low": _look("SOAA, γ = 0.05", ORANGE, ":"),
    "soaa_gamma_high": _look("SOAA, γ = 0.75", ORANGE, "--"),
    "adam_with_dt": _look("Adam with SOAA's dt", GREEN, ":"),
    "adam_with_others_dt": _look("Adam with another run's dt", PURPLE),
    "tadam": _look("TAdam", YELLOW),
}
"""How each method is called and looks: keyword arguments of a line in matplotlib."""


def label(method: str) -> str:
    """What a method is called in the book."""
    return METHODS[method]["label"]


def build(method: str, objective: Any, steps: int, **numbers: Any) -> Optimizer:
    """A method of the book for an objective and a run of so many steps.

    Args:
        method: one of ``BUILDERS``.
        objective: to be minimised.
        steps: of the whole run, which some methods have to know.
        **numbers: what is tuned of it, and every other argument of its own.
    """
    return BUILDERS[method](objective, steps, **numbers)


def _of_gradients(make: Callable) -> Callable[..., Optimizer]:
    def build(objective: Any, steps: int, learning_rate: Any, **numbers: Any) -> Optimizer:
        return first_order(objective, make(learning_rate, **numbers))

    return build


def _of_gradients_and_steps(make: Callable) -> Callable[..., Optimizer]:
    def build(objective: Any, steps: int, learning_rate: Any, **numbers: Any) -> Optimizer:
        return first_order(objective, make(learning_rate, total_steps=steps, **numbers))

    return build


def _of_objective(make: Callable) -> Callable[..., Optimizer]:
    def build(objective: Any, steps: int, **numbers: Any) -> Optimizer:
        return make(objective, **numbers)

    return build


def _adam_cosine(learning_rate: Any, *, total_steps: int) -> optax.GradientTransformation:
    falling = optax.cosine_decay_schedule(1.0, total_steps)
    return optax.adam(lambda count: learning_rate * falling(count))


SEVEN_FAST_FIVE_EXACT = (*7 * (QUINTIC,), *5 * ((*CUBIC, 0.0),))
"""Coefficients of twelve iterations after which ``polar_factor`` is reached to rounding."""


def hidden_matrices(model: Any) -> Callable[[Any], Any]:
    """Which parameters of a model are Muon's, as its author has it, for ``optax.contrib.muon``.

    They are the weights of dense layers, but for tables of embeddings and the last layer.
    """
    chosen = set(model.dense_layers[:-1]) - set(model.embeddings)

    def chosen_of(params: Any) -> Any:
        dimensions = optax.contrib.MuonDimensionNumbers()
        return {
            layer: {
                name: dimensions if layer in chosen and name == "weight" else None
                for name in leaves
            }
            for layer, leaves in params.items()
        }

    return chosen_of


def _muon(objective: Any, steps: int, learning_rate: Any, **numbers: Any) -> Optimizer:
    """Muon on the hidden matrices and Adam on the rest, at one learning rate for both.

    Steps of Muon have entries of size 0.2, as those of Adam have (Liu et al. 2025).
    """
    transformation = optax.contrib.muon(
        learning_rate,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=hidden_matrices(objective.model),
        **numbers,
    )
    return first_order(objective, transformation)


def _sophia(objective: Any, steps: int, learning_rate: Any, **numbers: Any) -> Optimizer:
    """``optax.contrib.sophia``: momentum over a clipped estimate of the Hessian's diagonal.

    Its estimator is not the one by which the paper (Liu et al. 2023) is known: optax multiplies the
    Hessian with random signs, Hutchinson's estimate of the paper's *Sophia-H*, with a seed that is
    always the same. *Sophia-G*, for Gauss-Newton-Bartlett, squares gradients of labels drawn from
    the model, which are never negative.
    """
    transformation = optax.contrib.sophia(learning_rate, **numbers)

    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        def loss_of(p: Any) -> Any:
            return objective(p, batch)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = transformation.update(gradient, state, params, obj_fn=loss_of)
        return optax.apply_updates(params, updates), state, {"loss": loss}

    return Optimizer(transformation.init, step, objective)


BUILDERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": _of_gradients(optax.sgd),
    "adam": _of_gradients(optax.adam),
    "adamw": _of_gradients(optax.adamw),
    "adam_cosine": _of_gradients_and_steps(_adam_cosine),
    "adam_8bit": _of_gradients(adam_8bit),
    "galore": _of_gradients(galore),
    "newton": _of_objective(newton),
    "hessian_free": _of_objective(hessian_free),
    "gauss_newton": _of_objective(partial(hessian_free, curvature="gauss_newton")),
    "gauss_newton_layers": _of_objective(
        partial(hessian_free, curvature="gauss_newton", blocks="layers")
    ),
    "trust_region": _of_objective(trust_region),
    "kfac": _of_objective(kfac),
    "ekfac": _of_objective(ekfac),
    "shampoo": _of_gradients(shampoo),
    "kl_shampoo": _of_gradients(kl_shampoo),
    "muon": _muon,
    "shampoo_without_memory": partial(
        _muon, ns_coeffs=SEVEN_FAST_FIVE_EXACT, ns_steps=len(SEVEN_FAST_FIVE_EXACT)
    ),
    "lbfgs": _of_gradients(optax.lbfgs),
    "soap": _of_gradients(soap),
    "psgd": _of_gradients(psgd),
    "sophia": _sophia,
    "soaa": _of_gradients_and_steps(soaa),
    "tadam": _of_gradients_and_steps(tadam),
}
"""How each method is built: ``(objective, steps, **numbers) -> Optimizer``."""
