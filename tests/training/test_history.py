import jax
import numpy as np
import pytest

from soaa_edu import History
from soaa_edu.storage import StoredFileError, save_tree


def history(loss=(2.0, 1.0, 0.5, 0.25), weight=(1.0, -1.0)):
    """Of two epochs of two steps."""
    return History(
        loss=np.array(loss),
        test_loss=np.array([1.5, np.nan]),
        test_accuracy=np.array([0.25, np.nan]),
        seconds=np.array([0.1, 0.2]),
        params={"dense_0": {"weight": np.array(weight), "bias": np.zeros(2, np.float32)}},
        info={"half": np.array(loss) / 2},
    )


def test_a_run_that_stays_finite_has_not_diverged():
    assert history().diverged_at is None


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_a_run_diverges_at_its_first_loss_that_is_not_finite(lost):
    assert history(loss=[2.0, lost, 0.5, lost]).diverged_at == 1


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_last_step_to_infinity_counts_as_divergence_after_it(lost):
    assert history(weight=[1.0, lost]).diverged_at == 4


def test_a_history_comes_back_from_its_file(tmp_path):
    written = history()
    written.save(tmp_path / "history.npz")
    found = History.load(tmp_path / "history.npz")
    assert type(found) is History
    assert jax.tree.structure(found) == jax.tree.structure(written)
    jax.tree.map(np.testing.assert_array_equal, found, written)


def test_a_file_of_something_else_is_no_history(tmp_path):
    save_tree(tmp_path / "file.npz", {"weights": np.ones(3)}, {})
    with pytest.raises(StoredFileError, match=r"file\.npz"):
        History.load(tmp_path / "file.npz")


def test_a_truncated_file_is_no_history(tmp_path):
    path = tmp_path / "history.npz"
    history().save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoredFileError, match="restore the file, or compute it again"):
        History.load(path)
