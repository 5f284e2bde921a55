"""Steps of other people's K-FAC, Shampoo, PSGD and Gauss-Newton in JAX, as multiples of Adam's.

They need an older JAX: run this in an environment made from ``peers.txt``, not in the project's.
SOAP is missing: we know no release of it in JAX on the package index that installs by itself.
"""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.timing import in_turn, table

SIZES = (784, 256, 256, 10)
BATCH, STEPS, ROUNDS = 512, 20, 5
REFRESH = 10


def main() -> None:
    """Print milliseconds of a step, the mean of 20, every tenth of them with a refresh."""
    print(f"{SIZES} tanh, batch {BATCH}, JAX {jax.__version__}")
    params, batches = start(), data()
    calls = {}
    for name, build in PEERS.items():
        try:
            call = build(params, batches)
            jax.block_until_ready(call())
        except Exception as error:
            reason = str(error).partition("\n")[0]
            print(f"{name}: not installed, or fails: {type(error).__name__}: {reason}")
        else:
            calls[name] = call
    table(in_turn(calls, ROUNDS), per=STEPS)


def start() -> list[dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(0), len(SIZES) - 1)
    initial = jax.nn.initializers.lecun_normal()
    return [
        {"weight": initial(key, shape), "bias": jnp.zeros(shape[1])}
        for key, shape in zip(keys, pairwise(SIZES))
    ]


def data() -> list[tuple[jax.Array, jax.Array]]:
    """A batch for each step of a call, random inputs with random labels."""
    keys = jax.random.split(jax.random.key(1), STEPS)
    return [
        (jax.random.normal(key, (BATCH, SIZES[0])), jax.random.randint(key, (BATCH,), 0, SIZES[-1]))
        for key in keys
    ]


def forward(params: Any, inputs: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        inputs = jnp.tanh(inputs @ layer["weight"] + layer["bias"])
    return inputs @ params[-1]["weight"] + params[-1]["bias"]


def mean_loss(params: Any, batch: Any) -> jax.Array:
    inputs, labels = batch
    losses = optax.softmax_cross_entropy_with_integer_labels(forward(params, inputs), labels)
    return losses.mean()


def adam(params: Any, batches: list) -> Callable[[], Any]:
    return steps_of(optax.adam(1e-3), params, batches)


def kfac(params: Any, batches: list) -> Callable[[], Any]:
    """A sampled Fisher, factors at each step, damping and momentum fixed."""
    import kfac_jax

    def registered_loss(params: Any, batch: Any) -> jax.Array:
        inputs, labels = batch
        kfac_jax.register_softmax_cross_entropy_loss(forward(params, inputs), labels)
        return mean_loss(params, batch)

    optimizer = kfac_jax.Optimizer(
        jax.value_and_grad(registered_loss),
        l2_reg=0.0,
        estimation_mode="fisher_gradients",
        inverse_update_period=REFRESH,
        num_burnin_steps=0,
        learning_rate_schedule=lambda step: 1e-3,
        momentum_schedule=lambda step: 0.9,
        damping_schedule=lambda step: 1.0,
    )
    params = jax.tree.map(jnp.copy, params)
    state = optimizer.init(params, jax.random.PRNGKey(2), batches[0])
    keys = jax.random.split(jax.random.PRNGKey(3), STEPS)
    taken = 0

    def call() -> Any:
        nonlocal params, state, taken
        for key, batch in zip(keys, batches):
            params, state, _ = optimizer.step(
                params, state, key, batch=batch, global_step_int=taken
            )
            taken += 1
        return params

    return call


def shampoo(params: Any, batches: list) -> Callable[[], Any]:
    """Statistics at each step, vectors with a diagonal; whole matrices take fifteen times as long.

    The release of 2022 starts a loop with a truth value that goes on as a number, which JAX no
    longer takes: it is given a loop that takes it.
    """
    from optax_shampoo import distributed_shampoo as module

    module.lax = SimpleNamespace(**{**vars(jax.lax), "while_loop": lenient_while_loop})
    transformation = module.distributed_shampoo(
        1e-3,
        block_size=128,
        preconditioning_compute_steps=REFRESH,
        skip_preconditioning_rank_lt=2,
    )
    return steps_of(transformation, params, batches)


def lenient_while_loop(condition: Callable, body: Callable, initial: Any) -> Any:
    shapes = jax.eval_shape(body, initial)
    initial = jax.tree.map(lambda x, shape: jnp.asarray(x, shape.dtype), initial, shapes)
    return jax.lax.while_loop(condition, body, initial)


def psgd(params: Any, batches: list) -> Callable[[], Any]:
    """Triangular factors for both sides of a matrix, diagonal ones for vectors."""
    from psgd_jax.kron import kron

    transformation = kron(1e-3, preconditioner_update_probability=1 / REFRESH)
    return steps_of(transformation, params, batches)


def gauss_newton(params: Any, batches: list) -> Callable[[], Any]:
    """Ten iterations of conjugate gradients from zero, damping fixed."""
    import somax

    method = somax.sgn_ce(predict_fn=forward, lam0=1.0, tol=0.0, maxiter=10, warm_start=False)
    key = jax.random.PRNGKey(2)

    @jax.jit
    def step(params: Any, state: Any, inputs: Any, labels: Any) -> tuple[Any, Any]:
        batch = {"x": inputs, "y": labels}
        params, state, _ = method.step(params, batch, state, key)
        return params, state

    carried = params, method.init(params)

    def call() -> Any:
        nonlocal carried
        for batch in batches:
            carried = step(*carried, *batch)
        return carried

    return call


def steps_of(transformation: Any, params: Any, batches: list) -> Callable[[], Any]:
    """A call takes one step on each batch, and the next one goes on from there."""

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        gradient = jax.grad(mean_loss)(params, batch)
        updates, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    carried = params, transformation.init(params)

    def call() -> Any:
        nonlocal carried
        for batch in batches:
            carried = step(*carried, batch)
        return carried

    return call


PEERS = {
    "Adam (optax)": adam,
    "K-FAC (kfac-jax)": kfac,
    "PSGD (psgd-jax)": psgd,
    "Shampoo, blocks of 128 (optax-shampoo)": shampoo,
    "Gauss-Newton, 10 CG iterations (somax)": gauss_newton,
}

if __name__ == "__main__":
    main()
