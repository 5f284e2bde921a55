"""The numbers of a GPU: steps of all methods, side by side, roots, and what precision costs.

python -m benchmarks.gpu, and with sizes for a CPU: python -m benchmarks.gpu --small

Programs compile in threads, as many as there are cores, for most of two minutes. What is not
compiled by then, or fails, stands as "-". The numbers also go to build/bench-gpu.json.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from os import cpu_count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import soaa_edu
from benchmarks import sweep
from soaa_edu.data import text
from soaa_edu.linear_solvers import inverse_root, inverse_root_by_products
from soaa_edu.optimizers.blocks import one_at_a_time
from soaa_edu.provenance import provenance
from soaa_edu.storage import save_json

ROUNDS = 3
RESULTS = Path("build/bench-gpu.json")
METHODS: dict[str, Callable[[Any], soaa_edu.Optimizer]] = {
    name: lambda objective, rule=rule: soaa_edu.first_order(objective, rule)
    for name, rule in {
        "Adam": optax.adam(1e-3),
        "SGD": optax.sgd(1e-3, momentum=0.9),
        "SOAA": soaa_edu.soaa(1e-3, total_steps=1000),
        "8-bit Adam": soaa_edu.adam_8bit(1e-3),
        "GaLore": soaa_edu.galore(1e-3),
        "Shampoo, roots every 10": soaa_edu.shampoo(1e-3),
        "SOAP, basis every 10": soaa_edu.soap(1e-3),
        "PSGD, probability 0.1": soaa_edu.psgd(1e-3, update_probability=0.1),
    }.items()
} | {
    "K-FAC, inverses every 10": partial(soaa_edu.kfac, learning_rate=1e-2, damping=0.1),
    "Gauss-Newton, 10 products": partial(
        soaa_edu.hessian_free, curvature="gauss_newton", damping=1.0, max_iterations=10
    ),
}


class Sizes(NamedTuple):
    """How large everything is, and how long compilation may take in all."""

    batch: int
    width: int
    depth: int
    rows: int
    length: int
    steps: int
    matrices: tuple[tuple[int, int], ...]
    product: int
    seconds: float
    networks: tuple[str, ...]


MATRICES = ((64, 9), (64, 147), (256, 9), (785, 1), (785, 9))
GPU = Sizes(512, 64, 4, 64, 256, 20, MATRICES, 2048, 70.0, ("MLP", "ViT", "decoder"))
SMALL = Sizes(32, 16, 1, 2, 16, 2, ((16, 3), (32, 1)), 128, 300.0, ("MLP",))


class Timed(NamedTuple):
    """A call that was compiled, or why it was not."""

    call: Callable[[], Any] | None
    trouble: str = ""


def main(sizes: Sizes = GPU) -> None:
    """Print all tables, and store their numbers."""
    calls: dict[tuple[str, ...], Callable[[], Callable[[], Any]]] = {
        **steps_of_methods(sizes),
        **roots(sizes),
        **precisions(sizes),
    }
    timed = compiled(calls, sizes.seconds)
    numbers = {key: seconds(found) for key, found in timed.items()}
    for table in dict.fromkeys(key[0] for key in calls):
        show(table, {key[1:]: value for key, value in numbers.items() if key[0] == table})
    errors_of_products(sizes)
    for trouble in sorted({found.trouble for found in timed.values() if found.trouble}):
        print(f"- {trouble}")
    if sizes is not SMALL:
        print("\n64 runs: at most an eighth of the time of runs in a row is asked for")
        sweep.main()
    rows = [{"what": list(key), "seconds": value} for key, value in numbers.items()]
    save_json(RESULTS, {"provenance": provenance(), "numbers": rows})


def compiled(
    calls: dict[tuple[str, ...], Callable[[], Callable[[], Any]]], patience: float
) -> dict[tuple[str, ...], Timed]:
    """Each call compiled, as far as the time goes."""
    pool = ThreadPoolExecutor(cpu_count())
    asked: dict[tuple[str, ...], Future] = {key: pool.submit(make) for key, make in calls.items()}
    wait(asked.values(), timeout=patience)
    pool.shutdown(wait=False, cancel_futures=True)
    found = {}
    for key, future in asked.items():
        if not future.done() or future.cancelled():
            found[key] = Timed(None, "some were not compiled in time")
        elif future.exception() is not None:
            found[key] = Timed(None, f"{' '.join(key)}: {str(future.exception()).splitlines()[0]}")
        else:
            found[key] = Timed(future.result())
    return found


def seconds(timed: Timed) -> float:
    """The least of some rounds after a first, ``nan`` where there is no call."""
    if timed.call is None:
        return float("nan")
    taken = []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(timed.call())
        taken.append(time.perf_counter() - began)
    return min(taken[1:]) / getattr(timed.call, "steps", 1)


def show(table: str, numbers: dict[tuple[str, ...], float]) -> None:
    """A table in milliseconds: a row for each first word, a column for each second one."""
    columns = list(dict.fromkeys(column for _, column in numbers))
    print(f"\n{table}\n{'':28}" + "".join(f"{column:>18}" for column in columns))
    first = next(iter(numbers))[0]
    for row in dict.fromkeys(row for row, _ in numbers):
        line = f"{row:28}"
        for column in columns:
            value = numbers.get((row, column), np.nan)
            times = value / numbers.get((first, column), np.nan)
            line += f"{1e3 * value:10.2f} ({times:5.1f})" if np.isfinite(value) else f"{'-':>18}"
        print(line)


def steps_of_methods(sizes: Sizes) -> dict[tuple[str, ...], Callable]:
    """A step of each method on three networks, in two types."""
    mlp = soaa_edu.models.mlp([784, 256, 256, 10], jnp.tanh)
    vit = soaa_edu.models.vit(width=sizes.width, depth=sizes.depth)
    decoder = soaa_edu.models.decoder(text.VOCABULARY, width=5 * sizes.width // 2, depth=3)
    images = jax.tree.map(jnp.asarray, soaa_edu.data.mnist(sizes.batch).train)
    rows = text.synthetic(sizes.rows * sizes.length, length=sizes.length).train
    networks = {
        "MLP": (mlp, images),
        "ViT": (vit, images),
        "decoder": (decoder, jax.tree.map(jnp.asarray, rows)),
    }
    return {
        (f"a step, ms (in steps of Adam), {dtype}", method, name): partial(
            _step, METHODS[method], model, batch, dtype, sizes.steps
        )
        for dtype in ("float32", "bfloat16")
        for method in METHODS
        for name, (model, batch) in networks.items()
        if name in sizes.networks
    }


def _step(
    method: Callable, model: Any, batch: Any, dtype: str, steps: int, precision: str | None = None
) -> Callable[[], Any]:
    """Some steps compiled as one program, whose time is divided by their number."""

    def cast(tree: Any) -> Any:
        floats = partial(jnp.issubdtype, arg2=jnp.floating)
        return jax.tree.map(lambda x: x.astype(dtype) if floats(x.dtype) else x, tree)

    optimizer = method(soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy))
    params, batch = cast(model.init(jax.random.key(0))), cast(batch)
    keys = jax.random.split(jax.random.key(1), steps)

    def run(params: Any, state: Any, batch: Any) -> Any:
        def body(carry: tuple, key: jax.Array) -> tuple[tuple, Any]:
            params, state, info = optimizer.step(*carry, batch, key)
            return (params, state), info["loss"]

        return jax.lax.scan(body, (params, state), keys)

    arguments = params, optimizer.init(params), batch
    with jax.default_matmul_precision(precision):
        program = jax.jit(run).lower(*arguments).compile()
    return _Shared(partial(program, *arguments), steps)


class _Shared(NamedTuple):
    """A call of many steps."""

    call: Callable[[], Any]
    steps: int

    def __call__(self) -> Any:
        return self.call()


def roots(sizes: Sizes) -> dict[tuple[str, ...], Callable]:
    """L to the power -1/4 and inverses, of stacks of matrices."""
    exact = partial(inverse_root, exponent=0.25, ridge=1e-6)
    ways = {
        "eigh, one at a time": partial(one_at_a_time, exact),
        "eigh of the stack": exact,
        "products": partial(inverse_root_by_products, p=4, ridge=1e-6),
        "inverse by Cholesky": _inverse,
    }
    return {
        ("roots and inverses of a stack, ms (times eigh)", way, f"{count} of {n}"): partial(
            _of_stack, function, n, count
        )
        for way, function in ways.items()
        for n, count in sizes.matrices
    }


def _inverse(stack: jax.Array) -> jax.Array:
    identity = jnp.broadcast_to(jnp.eye(stack.shape[-1], dtype=stack.dtype), stack.shape)
    triangle = jnp.linalg.cholesky(stack + 1e-3 * identity)
    half = jax.lax.linalg.triangular_solve(triangle, identity, left_side=True, lower=True)
    return half.mT @ half


def _of_stack(function: Callable, n: int, count: int) -> Callable[[], Any]:
    gradients = jax.random.normal(jax.random.key(0), (count, n, 2 * n)) / np.sqrt(2 * n)
    with soaa_edu.precision.exact_products():
        stack = gradients @ gradients.mT
        program = jax.jit(function).lower(stack).compile()
    return partial(program, stack)


def precisions(sizes: Sizes) -> dict[tuple[str, ...], Callable]:
    """A product and a step of Adam by the precision of float32 products."""
    model = soaa_edu.models.vit(width=sizes.width, depth=sizes.depth)
    images = jax.tree.map(jnp.asarray, soaa_edu.data.mnist(sizes.batch).train)
    found: dict[tuple[str, ...], Callable] = {}
    for precision in ("highest", "high", "default"):
        key = ("by the precision of products, ms (times the highest)", precision)
        found[*key, f"product {sizes.product}"] = partial(_product, sizes.product, precision)
        found[*key, "Adam on the ViT"] = partial(
            _step, METHODS["Adam"], model, images, "float32", sizes.steps, precision
        )
    return found


def _product(n: int, precision: str) -> Callable[[], Any]:
    a, b = jax.random.normal(jax.random.key(0), (2, n, n))
    with jax.default_matmul_precision(precision):
        program = jax.jit(jnp.matmul).lower(a, b).compile()
    return partial(program, a, b)


def errors_of_products(sizes: Sizes) -> None:
    """Print how far products are from float64's, relative to their largest entry."""
    n = min(sizes.product, 1024)
    a, b = jax.random.normal(jax.random.key(0), (2, n, n))
    exact = np.asarray(a, float) @ np.asarray(b, float)
    for precision in ("highest", "high", "default"):
        found = np.asarray(_product(n, precision)())
        print(f"{precision:10} error of a product {np.abs(found - exact).max() / exact.max():.0e}")


if __name__ == "__main__":
    main(SMALL if "--small" in sys.argv[1:] else GPU)
