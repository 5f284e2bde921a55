"""The words of a lexicon as a tree of letters."""

from typing import NamedTuple

import numpy as np

from soaa_edu.data.text.lexicon import Lexicon


class Trie(NamedTuple):
    """V nodes, the root first, each the beginning of some words.

    Attributes:
        child: ``(V, 26)``, the node one letter on, 0 where no word goes on with that letter.
        parent: ``(V,)``.
        depth: ``(V,)``, letters from the root.
        mass: ``(V, C)``, the probability in each class of the words that begin so.
        word_class: ``(V,)``, the class of the word that ends here; 0 where none does.
        word_probability: ``(V,)``, its probability in its class; 0 where none does.
    """

    child: np.ndarray
    parent: np.ndarray
    depth: np.ndarray
    mass: np.ndarray
    word_class: np.ndarray
    word_probability: np.ndarray


def build(lexicon: Lexicon) -> Trie:
    """The tree of all words of a lexicon."""
    words = np.array(lexicon.words, "S")
    order = np.argsort(words)
    letters = words[order].view(np.uint8).reshape(len(words), -1)
    word_class, probability = lexicon.word_class[order], lexicon.probability[order]

    differs = np.ones(letters.shape, bool)
    differs[1:] = np.logical_or.accumulate(letters[1:] != letters[:-1], axis=1)
    there = letters > 0
    new = differs & there
    node = np.where(new, np.cumsum(new).reshape(new.shape), 0)
    node = np.where(there, np.maximum.accumulate(node), 0)
    above = np.concatenate([np.zeros((len(words), 1), node.dtype), node[:, :-1]], axis=1)

    count, classes = node.max() + 1, len(lexicon.classes)
    child = np.zeros((count, 26), np.int32)
    child[above[new], letters[new] - ord("a")] = node[new]
    parent = np.zeros(count, np.int32)
    parent[node[new]] = above[new]
    depth = np.zeros(count, np.int32)
    depth[node[new]] = np.nonzero(new)[1] + 1
    cells = (node * classes + word_class[:, None])[there]
    shares = np.broadcast_to(probability[:, None], there.shape)[there]
    mass = np.bincount(cells, shares, minlength=count * classes).reshape(count, classes)
    mass[0] = 1
    last = node.max(axis=1)
    ending_class, ending_probability = np.zeros(count, np.int32), np.zeros(count)
    ending_class[last], ending_probability[last] = word_class, probability
    return Trie(child, parent, depth, mass, ending_class, ending_probability)
