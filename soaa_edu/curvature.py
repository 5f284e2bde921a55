"""Curvature matrices as functions v -> C v. Nothing here forms a matrix but ``dense``."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from soaa_edu import checks
from soaa_edu.objective import Loss, Objective, count_examples, weights_of
from soaa_edu.precision import exact_products

Matvec = Callable[[Any], Any]
CURVATURES = ("hessian", "gauss_newton")


@exact_products()
def hvp(f: Callable, params: Any, v: Any, mode: str = "forward_over_reverse") -> Any:
    """The Hessian of ``f`` at ``params`` times ``v`` (Pearlmutter 1994).

    The three modes give the same product at different prices:
    ``"forward_over_reverse"`` differentiates the gradient along v,
    ``"reverse_over_reverse"`` takes the gradient of gᵀv (the slides' ``hvp``),
    ``"reverse_over_forward"`` takes the gradient of the directional derivative.

    Args:
        f: maps ``params`` to a scalar.
        params: any pytree.
        v: a pytree like ``params``.
        mode: one of the three.

    Raises:
        ValueError: an unknown mode.
    """
    checks.one_of(
        "mode", mode, ("forward_over_reverse", "reverse_over_reverse", "reverse_over_forward")
    )
    if mode == "forward_over_reverse":
        return jax.jvp(jax.grad(f), (params,), (v,))[1]
    if mode == "reverse_over_reverse":
        return jax.grad(lambda p: optax.tree.vdot(jax.grad(f)(p), v))(params)
    return jax.grad(lambda p: jax.jvp(f, (p,), (v,))[1])(params)


@exact_products()
def hessian_matvec(f: Callable, params: Any) -> Matvec:
    """v -> H v for the Hessian of ``f(params)``, linearised once at ``params``."""
    return jax.linearize(jax.grad(f), params)[1]


@exact_products()
def hutchinson_diagonal(f: Callable, params: Any, key: jax.Array, probes: int = 1) -> Any:
    """An estimate of the Hessian's diagonal: the mean of v ⊙ H v over random signs v.

    Its expectation is the diagonal, since E[vᵢ vⱼ] is zero off it, and the variance of an entry is
    Σⱼ Hᵢⱼ² over the others of its row, divided by the probes (Hutchinson 1990; AdaHessian, Yao et
    al. 2021, divides by the root of an average of its squares).

    Args:
        f: maps ``params`` to a scalar.
        params: any pytree.
        key: of the signs.
        probes: how many, one product each.

    Raises:
        ValueError: no probe.
    """
    matvec = hessian_matvec(f, params)

    def add(total: Any, key: jax.Array) -> tuple[Any, None]:
        signs = optax.tree.random_like(key, params, sampler=jax.random.rademacher)
        signs = optax.tree.cast_like(signs, params)
        return jax.tree.map(lambda t, v, h: t + v * h, total, signs, matvec(signs)), None

    keys = jax.random.split(key, checks.whole("probes", probes))
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), keys)
    return jax.tree.map(lambda t: t / probes, total)


@exact_products()
def gauss_newton_matvec(objective: Objective, params: Any, batch: Any) -> Matvec:
    """v -> G v with G = Jᵀ H_L J (Schraudolph 2002).

    J is the Jacobian of the outputs with respect to the parameters, H_L the Hessian of the mean
    loss with respect to the outputs. G is positive semidefinite where the loss is convex.
    """
    inputs, targets = batch
    outputs, jacobian, transpose = _linearised(objective.model, params, inputs)
    _, output_hessian = jax.linearize(jax.grad(lambda z: objective.loss(z, targets)), outputs)
    return lambda v: transpose(output_hessian(jacobian(v)))


@exact_products()
def fisher_matvec(
    objective: Objective, params: Any, batch: Any, key: jax.Array | None = None
) -> Matvec:
    """v -> F v with F the mean over the examples of E[gᵢ gᵢᵀ] (Martens 2020, section 5).

    gᵢ is the gradient of one example's loss, an example being a target that counts, and E runs over
    targets from the model's own distribution: exactly without a key, over one draw for each example
    with one.

    Raises:
        TypeError: the loss does not say how its targets are distributed.
    """
    inputs, targets = batch
    loss = objective.loss
    if not isinstance(loss, Loss):
        raise TypeError(
            "the Fisher matrix needs targets from the model's own distribution, and this loss does "
            "not say how to draw them: wrap it as soaa_edu.Loss(mean, sample, gradient_covariance)"
        )
    if key is not None:
        outputs = objective.model(params, inputs)
        sampled = jax.lax.stop_gradient(loss.sample(key, outputs, targets))
        return empirical_fisher_matvec(objective, params, (inputs, sampled))
    outputs, jacobian, transpose = _linearised(objective.model, params, inputs)
    examples = count_examples(loss, targets)

    @exact_products()
    def matvec(v: Any) -> Any:
        covariance = loss.gradient_covariance(outputs, targets, jacobian(v))
        return transpose(examples * covariance)

    return matvec


@exact_products()
def empirical_fisher_matvec(objective: Objective, params: Any, batch: Any) -> Matvec:
    """v -> E v with E = 1/N Σ gᵢ gᵢᵀ, gᵢ the gradient of one example's loss at its given target.

    Written with the mean loss's gradient rᵢ in the outputs of example i, gᵢ = N Jᵢᵀ rᵢ, so that
    E v = Jᵀ (N rᵢ (rᵢᵀ Jᵢ v)) needs no gradient of a single example. The N examples are the targets
    that count: each position of a sequence with a label of its own is one.
    """
    inputs, targets = batch
    outputs, jacobian, transpose = _linearised(objective.model, params, inputs)
    residual = jax.grad(lambda z: objective.loss(z, targets))(outputs)
    examples = count_examples(objective.loss, targets).astype(outputs.dtype)
    of_an_example = tuple(range(jnp.ndim(weights_of(objective.loss, targets)), outputs.ndim))

    def matvec(v: Any) -> Any:
        along = jnp.sum(residual * jacobian(v), axis=of_an_example, keepdims=True)
        return transpose(examples * along * residual)

    return matvec


@exact_products()
def empirical_fisher_diagonal(objective: Any, params: Any, batch: Any) -> Any:
    """The diagonal of the empirical Fisher: each gradient of one example, squared, their mean.

    A pytree like ``params``. Rows are taken a few at a time, to bound the memory. Where the
    positions of a row are examples of their own, each takes a backward pass of its own.
    """
    inputs, targets = batch
    loss = getattr(objective, "loss", None)
    weights = weights_of(loss, targets)
    size = len(jax.tree.leaves(inputs)[0])
    together = math.gcd(size, 32)
    rows = jax.tree.map(
        lambda x: x.reshape(size // together, together, 1, *x.shape[1:]), (inputs, targets)
    )

    def squares_of_row(row: Any) -> Any:
        """Σ g² over the examples of a row, g the gradient of an example's own loss."""
        if jnp.ndim(weights) == 1:
            counts = weights_of(loss, row[1])[0]
            return jax.tree.map(lambda g: counts * g**2, jax.grad(objective)(params, row))
        outputs, transpose = jax.vjp(lambda p: objective.model(p, row[0]), params)
        mean_residual = jax.grad(lambda z: objective.loss(z, row[1]))(outputs)
        counts = weights_of(loss, row[1]).ravel()
        residual = (jnp.sum(counts).astype(outputs.dtype) * mean_residual).reshape(counts.size, -1)

        def add_position(total: Any, position: jax.Array) -> tuple[Any, None]:
            alone = jnp.where(jnp.arange(counts.size) == position, 1, 0)[:, None] * residual
            (g,) = transpose(alone.reshape(outputs.shape).astype(outputs.dtype))
            return jax.tree.map(lambda t, g: t + g**2, total, g), None

        zero = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add_position, zero, jnp.arange(counts.size))[0]

    def add(total: Any, some: Any) -> tuple[Any, None]:
        squares = jax.vmap(squares_of_row)(some)
        return jax.tree.map(lambda t, s: t + s.sum(axis=0).astype(t.dtype), total, squares), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), rows)
    count = jnp.maximum(jnp.sum(weights), 1)
    return jax.tree.map(lambda t: (t / count).astype(t.dtype), total)


def check_curvature(objective: Any, curvature: str) -> None:
    """Raise unless ``curvature`` is one of ``CURVATURES`` and fits the objective.

    Raises:
        ValueError: an unknown name.
        TypeError: ``"gauss_newton"`` without an ``Objective``.
    """
    checks.one_of("curvature", curvature, CURVATURES)
    if curvature == "gauss_newton" and not isinstance(objective, Objective):
        raise TypeError("Gauss-Newton needs soaa_edu.Objective(model, loss), to tell them apart")


def curvature_matvec(objective: Any, params: Any, batch: Any, curvature: str) -> Matvec:
    """v -> C v on a batch, C being ``"hessian"`` or ``"gauss_newton"``."""
    if curvature == "hessian":
        return hessian_matvec(lambda p: objective(p, batch), params)
    return gauss_newton_matvec(objective, params, batch)


def damped(matvec: Matvec, damping: Any) -> Matvec:
    """v -> (C + λI) v."""
    return lambda v: jax.tree.map(lambda cv, v: cv + damping * v, matvec(v), v)


@exact_products()
def dense(matvec: Matvec, params: Any) -> jax.Array:
    """The matrix itself, ``(n, n)``, in the order of ``jax.flatten_util.ravel_pytree(params)``.

    For teaching, tests and small problems: it costs n products and n² numbers.
    """
    flat, unravel = ravel_pytree(params)

    def column(unit: jax.Array) -> jax.Array:
        return ravel_pytree(matvec(unravel(unit)))[0]

    return apply_to_identity(column, flat.size, flat.dtype).T


@exact_products()
def jacobian(model: Callable, params: Any, inputs: Any) -> jax.Array:
    """J ``(outputs, n)``, one row for each output, columns as ``ravel_pytree(params)`` has them.

    Every example is differentiated by itself: its outputs must depend on its own inputs alone. So J
    costs about as much as one gradient, where columns or rows by themselves cost n or as many
    passes over the whole batch as it has outputs.

    Args:
        model: ``(params, inputs) -> outputs``.
        params: any pytree.
        inputs: a tree of arrays with the examples on the first axis.
    """
    flat, unravel = ravel_pytree(params)

    def of_example(example: Any) -> Any:
        alone = jax.tree.map(lambda x: x[None], example)
        return jax.jacrev(lambda p: model(unravel(p), alone))(flat)

    return jax.vmap(of_example)(inputs).reshape(-1, flat.size)


@exact_products()
def apply_to_identity(function: Callable, size: int, dtype: Any) -> jax.Array:
    """What ``function`` makes of each unit vector of ``size`` numbers, one row for each.

    At most 256 are taken at a time, in even parts, so that one program serves them all.
    """
    parts = math.ceil(size / 256)
    at_once = math.ceil(size / parts)
    units = jnp.eye(parts * at_once, size, dtype=dtype)
    return jax.lax.map(function, units, batch_size=at_once)[:size]


def _linearised(model: Callable, params: Any, inputs: Any) -> tuple[Any, Matvec, Matvec]:
    """The outputs, v -> J v and u -> Jᵀ u, from one linearisation."""
    outputs, jacobian = jax.linearize(lambda p: model(p, inputs), params)
    transposed = jax.linear_transpose(jacobian, params)
    return outputs, jacobian, lambda u: transposed(u)[0]
