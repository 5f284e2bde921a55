"""How precise products are."""

from contextlib import AbstractContextManager

import jax

PRODUCTS = "highest"
"""JAX's name for products of float32 that are rounded to float32 alone."""


def exact_products() -> AbstractContextManager:
    """Everything traced inside takes products as precise as its type has them.

    By default a GPU rounds the factors of a float32 product to 10 bits (TF32).
    """
    return jax.default_matmul_precision(PRODUCTS)
