"""How exactly products are taken: one setting for the whole library."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

PRODUCTS = "highest"
"""JAX's name for products of float32 that are rounded to float32 alone."""


@contextmanager
def exact_products() -> Iterator[None]:
    """Everything traced inside takes products as exactly as its type has them.

    By default a GPU rounds the factors of a float32 product to 10 bits (TF32) and a TPU to 7.
    Networks train with that. Curvature does not survive it: a statistic's small eigenvalues drown
    below a thousandth of its largest one, conjugate gradients stop where their residual is no
    longer one, and a root is wrong in its first digit.

    It is a context, and with ``@exact_products()`` a decorator. All mathematics of the library
    stands under it, and so does a model that runs within: the whole step of a method that takes the
    objective, its forward and backward passes included. An optax transformation takes gradients
    that were made outside, in whatever precision the training loop has. Where products in a model
    name a precision of their own, that holds, and those of bfloat16 are as fast as ever: the
    setting speaks of float32 alone.
    """
    with jax.default_matmul_precision(PRODUCTS):
        yield
