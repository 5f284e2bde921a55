"""Where a tree has its arrays, and the layers that are made of them."""

from typing import Any, NamedTuple

import jax
from jax.tree_util import keystr, tree_flatten_with_path

from soaa_edu.models.layers import Params


class Layout(NamedTuple):
    """A tree, and the layer and the name of each of its leaves."""

    structure: Any
    places: list[tuple[str, str]]

    def split(self, tree: Any) -> Params:
        """The tree's arrays by layers."""
        layers: Params = {}
        for (layer, name), array in zip(self.places, jax.tree.leaves(tree), strict=True):
            layers.setdefault(layer, {})[name] = array
        return layers

    def join(self, layers: Params) -> Any:
        """The tree of the layers' arrays."""
        return jax.tree.unflatten(self.structure, [layers[layer][n] for layer, n in self.places])


def layout_by_path(tree: Any, separator: str) -> Layout:
    """Each array in the layer of what holds it, under its own name."""
    leaves, structure = tree_flatten_with_path(tree)
    places = [
        (path_name(path[:-1], separator), path_name(path[-1:], separator)) for path, _ in leaves
    ]
    return Layout(structure, places)


def path_name(path: Any, separator: str) -> str:
    """A path in a tree as text, ``"."`` for the tree itself."""
    return keystr(path, simple=True, separator=separator) or "."
