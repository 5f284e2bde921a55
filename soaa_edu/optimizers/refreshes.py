"""When a method renews what it need not renew at every step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def refreshed(due: Any, fresh: Callable[[], Any], old: Any) -> Any:
    """What ``fresh`` gives where it is due, and ``old`` where it is not.

    Under ``vmap`` a condition that differs between runs would compute both for every run at every
    step. Here ``fresh`` is computed only in steps in which one of the runs is due.

    Args:
        due: true or false, an array of shape ``()``.
        fresh: gives a tree like ``old``.
        old: a tree of arrays, whose types the fresh one takes.
    """

    def renewed() -> Any:
        mine = _in_this_run(due)
        return jax.tree.map(
            lambda new, was: jnp.where(mine, jnp.astype(new, jnp.result_type(was)), was),
            fresh(),
            old,
        )

    return jax.lax.cond(_in_any_run(due), renewed, lambda: old)


@jax.custom_batching.custom_vmap
def _in_any_run(due: Any) -> Any:
    return due


@_in_any_run.def_vmap
def _over_runs(runs: int, batched: list[bool], due: Any) -> tuple[Any, bool]:
    return _in_any_run(jnp.any(due, axis=0)), False


@jax.custom_batching.custom_vmap
def _in_this_run(due: Any) -> Any:
    """A run that is alone comes here only if it is due."""
    return jnp.ones_like(due)


@_in_this_run.def_vmap
def _in_each_run(runs: int, batched: list[bool], due: Any) -> tuple[Any, bool]:
    return due, True
