"""What a traced function does, operation by operation."""

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def operations(function, *arguments):
    """Every operation of the traced function, inner ones too, with what it stands within."""
    return list(_within(jax.make_jaxpr(function)(*arguments).jaxpr, ()))


def _within(jaxpr, outer):
    for equation in jaxpr.eqns:
        yield equation, outer
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    deeper = getattr(inner, "jaxpr", inner)
                    yield from _within(deeper, (*outer, equation.primitive.name))
