"""Hessian-free optimization: Newton's step by conjugate gradients, no matrix anywhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from soaa_edu import checks
from soaa_edu.curvature import check_curvature, curvature_matvec
from soaa_edu.linear_solvers.conjugate_gradients import conjugate_gradient
from soaa_edu.optimizers.parameters import in_float32
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.spans import RowSpace, check_layers, layer_by_layer, spanned_by_rows
from soaa_edu.optimizers.trials import DampingRule, next_damping, predicted_decrease, try_step
from soaa_edu.precision import exact_products


def hessian_free(
    objective: Callable,
    *,
    learning_rate: Any = 1.0,
    damping: Any,
    curvature: str = "hessian",
    max_iterations: int = 50,
    tolerance: Any = 1e-5,
    blocks: str | None = None,
) -> Optimizer:
    """Hessian-free Newton, as in the slides: θ ← θ - α d, (C + λI) d = g by conjugate gradients.

    The curvature is linearised once a step, and every iteration is one product with it. Where the
    model declares its input layer and the inputs are wider than the batch, the iteration runs in
    coordinates on the batch's rows if that is less work: the same iterates, at less cost.
    Where the first direction already has negative curvature, as near a saddle, a fixed λ takes
    d = g, the way down that needs no curvature (Nocedal & Wright 2006, algorithm 7.1), and an
    adapted one grows until it no longer has.
    ``martens_hessian_free`` adds what Martens (2010) did.

    With ``blocks="layers"`` C is block-diagonal. Each entry of ``params``, a layer's arrays
    together, has a system of its own, (C_l + λI) d_l = g_l, with C_l the exact curvature of the
    loss in that layer while the others stand still: the block for which K-FAC puts a Kronecker
    product. A product with C_l runs from the layer to the outputs and back, so that products with
    all blocks take as many passes as there are layers, shorter ones from the later layers.

    Args:
        objective: ``(params, batch) -> scalar``; an ``Objective`` for ``"gauss_newton"``.
        learning_rate: α.
        damping: λ, a number, or ``levenberg_marquardt(initial=...)``, which adapts it and rejects
            a step that raises the loss.
        curvature: C, ``"hessian"`` or ``"gauss_newton"``.
        max_iterations: of conjugate gradients.
        tolerance: their residual relative to the gradient's norm.
        blocks: ``"layers"`` for a system for each layer, with an α, β, residual and end of its own;
            ``None`` for one system.

    ``Info`` has ``cg_iterations``, those of the layer that took most where there are blocks, and,
    with an adapted damping, ``damping`` (of this step), ``reduction_ratio`` and ``accepted``.

    Raises:
        ValueError: a number out of its range, or an unknown curvature.
        TypeError: ``"gauss_newton"`` without an ``Objective``; at the start, ``"layers"`` where the
            parameters are no dict of layers.
    """
    learning_rate = checks.positive("learning_rate", learning_rate)
    checks.whole("max_iterations", max_iterations)
    tolerance = checks.not_negative("tolerance", tolerance)
    check_curvature(objective, curvature)
    if blocks is not None:
        checks.one_of("blocks", blocks, ("layers",))
    rule = damping if isinstance(damping, DampingRule) else None
    if rule is None:
        damping = checks.not_negative("damping", damping)

    def init(params: Any) -> Any:
        if blocks is not None:
            check_layers(params)
        return () if rule is None else jnp.asarray(rule.initial, ravel_pytree(params)[0].dtype)

    def solve(space: RowSpace, gradient: Any, batch: Any, strength: Any) -> tuple[Any, Any, Any]:
        """The step in a space, the iterations it took, and what the undamped model promises."""
        multiply = curvature_matvec(space.objective, space.coordinates, batch, curvature)

        def matvec(v: Any) -> Any:
            return multiply(space.metric(v))

        def damped_matvec(v: Any, measured: Any) -> Any:
            return jax.tree.map(lambda cv, v: cv + strength * v, multiply(measured), v)

        cg = conjugate_gradient(
            damped_matvec,
            gradient,
            max_iterations=max_iterations,
            tolerance=tolerance,
            metric=space.metric,
        )
        direction = cg.solution
        if rule is None:
            direction = optax.tree.where(cg.iterations == 0, gradient, direction)
        update = jax.tree.map(lambda d: -learning_rate * d, direction)
        return update, cg.iterations, predicted_decrease(matvec, gradient, update, space.metric)

    def solve_each_layer(
        space: RowSpace, gradient: Any, batch: Any, strength: Any
    ) -> tuple[Any, Any, Any]:
        solved = {
            name: solve(part, gradient[name], batch, strength)
            for name, part in layer_by_layer(space).items()
        }
        updates, iterations, predicted = zip(*solved.values())
        return dict(zip(solved, updates)), jnp.max(jnp.stack(iterations)), sum(predicted)

    @exact_products()
    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        strength = damping if rule is None else state
        space = spanned_by_rows(objective, params, batch)
        loss, gradient = jax.value_and_grad(space.objective)(space.coordinates, batch)
        solve_all = solve if blocks is None else solve_each_layer
        seen_update, iterations, predicted = solve_all(space, gradient, batch, strength)
        update = space.to_parameters(seen_update)
        info = {"loss": loss, "cg_iterations": iterations}
        if rule is None:
            params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, update)
            return params, state, info
        trial = try_step(objective, params, batch, loss, gradient, update, predicted)
        info |= {
            "damping": strength,
            "reduction_ratio": trial.reduction_ratio,
            "accepted": trial.accepted,
        }
        return trial.params, next_damping(rule, state, trial), info

    return in_float32(Optimizer(init, step, objective))
