"""Curvature products against one gradient: the three modes, linearised once, Gauss-Newton."""

import jax

import soaa_edu
from benchmarks.timing import in_turn, table
from soaa_edu import curvature

PRODUCTS = 20
MODES = ("forward_over_reverse", "reverse_over_reverse", "reverse_over_forward")


def main() -> None:
    """Print milliseconds of a product, the mean of 20 in one compiled loop."""
    inputs, labels = soaa_edu.data.mnist(train_size=512).train
    for sizes, batch_size in (([784, 10, 10], 64), ([784, 256, 256, 10], 512)):
        model = soaa_edu.models.mlp(sizes, activation=jax.nn.tanh)
        objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
        batch = inputs[:batch_size], labels[:batch_size]
        params = model.init(jax.random.key(0))
        calls = products(objective, params, batch)
        print(f"mlp({sizes}), batch {batch_size}")
        table(in_turn(calls, rounds=10), per=PRODUCTS)


def products(objective, params, batch):
    def loss(p):
        return objective(p, batch)

    def repeated(start_product):
        """Apply one linear map twenty times in a row, so that none is hoisted out or shared."""

        @jax.jit
        def run(p):
            product = start_product(p)
            return jax.lax.fori_loop(0, PRODUCTS, lambda _, v: product(v), p)

        return lambda: run(params)

    def shifted_gradient(p):
        return lambda v: jax.grad(loss)(jax.tree.map(lambda a, b: a + 0.01 * b, p, v))

    return {
        "gradient": repeated(shifted_gradient),
        **{
            mode: repeated(lambda p, mode=mode: lambda v: curvature.hvp(loss, p, v, mode))
            for mode in MODES
        },
        "hessian_matvec": repeated(lambda p: curvature.hessian_matvec(loss, p)),
        "gauss_newton_matvec": repeated(
            lambda p: curvature.gauss_newton_matvec(objective, p, batch)
        ),
        "empirical_fisher_matvec": repeated(
            lambda p: curvature.empirical_fisher_matvec(objective, p, batch)
        ),
    }
