"""What is kept of a training run."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from soaa_edu.provenance import provenance
from soaa_edu.storage import StoredFileError, load_tree, save_tree


class History(NamedTuple):
    """What happened in a training run. A run that diverged holds infinity or ``nan`` from there.

    Attributes:
        loss: on the batch before each step, ``(steps,)``.
        test_loss: after each epoch, ``(epochs,)``; ``nan`` where nothing was evaluated.
        test_accuracy: share of right answers after each epoch, ``(epochs,)``; ``nan`` likewise,
            and where the targets are not labels.
        seconds: of each epoch's steps, compilation and evaluation left out, ``(epochs,)``.
        params: at the end.
        info: what else the method's ``Info`` had at each step, name -> ``(steps,)``.
        state: the optimizer's at the end, from which ``train(..., resume=history)`` goes on.
    """

    loss: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    seconds: np.ndarray
    params: Any
    info: dict[str, np.ndarray]
    state: Any = None

    @property
    def diverged_at(self) -> int | None:
        """The first step whose loss is not finite, or ``None``.

        The number of steps, where the last one of them left parameters that are not finite.
        """
        lost = np.flatnonzero(~np.isfinite(self.loss))
        if len(lost):
            return int(lost[0])
        sound = all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(self.params))
        return None if sound else len(self.loss)

    def save(self, path: Path | str) -> None:
        """Write everything but the state, with its provenance, to an ``.npz`` file, whole or not.

        To go on another day, save ``(history.params, history.state)`` too, with a library made for
        it, such as ``equinox.tree_serialise_leaves`` or Orbax.
        """
        save_tree(path, self._replace(state=None)._asdict(), provenance())

    @classmethod
    def load(cls, path: Path | str) -> "History":
        """Read what ``save`` wrote.

        Raises:
            soaa_edu.storage.StoredFileError: the file is missing, truncated or of another kind.
        """
        tree, _ = load_tree(path)
        if not isinstance(tree, dict) or set(tree) != set(cls._fields):
            raise StoredFileError(
                f"{path} holds something else: give a file that History.save wrote"
            )
        return cls(**tree)
