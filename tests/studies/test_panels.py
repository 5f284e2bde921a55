import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from soaa_edu.studies import panels
from soaa_edu.studies.methods import METHODS

FIELD = ("adam", "soaa")


@pytest.fixture
def results(made_up, runs, costs):
    cells = {f"method={m} batch={b}": runs([0.3, np.nan, 0.5]) for m in FIELD for b in (64, 128)}
    cells["cost=step batch=64"] = costs({"adam": [0.1, 0.2, 0.3], "soaa": 0.5})
    return made_up("race", cells, {"epochs": 4})


@pytest.fixture
def axes(close_figures):
    return plt.subplots()[1]


@pytest.mark.parametrize(
    "against, label, adam, soaa",
    [
        ("step", "step", [5, 15, 25, 35], [5, 15, 25, 35]),
        ("epoch", "epoch", [0.5, 1.5, 2.5, 3.5], [0.5, 1.5, 2.5, 3.5]),
        ("second", "seconds, compilation left out", [1, 3, 5, 7], [2.5, 7.5, 12.5, 17.5]),
    ],
)
def test_curves_are_drawn_against_steps_epochs_or_seconds(
    axes, results, against, label, adam, soaa
):
    panels.curves(axes, results, FIELD, against=against, batch=64)
    assert axes.get_xlabel() == label
    assert axes.get_ylabel() == "training loss (nats)"
    assert [line.get_label() for line in axes.lines] == ["Adam", "SOAA"]
    for line, x, method in zip(axes.lines, (adam, soaa), FIELD, strict=True):
        np.testing.assert_allclose(line.get_xdata(), x)
        assert line.get_color() == METHODS[method]["color"]


def test_a_line_is_the_mean_over_seeds_with_a_band_and_of_as_many_points_as_asked(
    axes, made_up, runs
):
    results = made_up("race", {"method=adam": runs([0.3, 0.4, 0.5])})
    panels.curves(axes, results, ["adam"], points=2)
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[10, (2.3 + 0.4) / 2], [30, 0.4]])
    (band,) = axes.collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((0.3, 1.35 + 0.05))


def test_each_seed_has_its_own_thin_line_and_a_lost_one_ends_at_ten(axes, results):
    panels.curves(axes, results, FIELD, each_seed=True, batch=128)
    ends = [line.get_ydata()[-1] for line in axes.lines]
    assert ends == [0.3, 10, 0.5] * 2
    colors = [line.get_color() for line in axes.lines]
    assert colors == [METHODS[m]["color"] for m in FIELD for _ in range(3)]
    axes.legend()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Adam", "SOAA"]


def test_numbers_are_drawn_against_sizes_by_method(axes):
    def number(method, size):
        return np.array([1.0, 3.0]) * size * (2 if method == "soaa" else 1)

    panels.against_size(axes, (64, 1024), number, FIELD)
    assert [line.get_label() for line in axes.lines] == ["Adam", "SOAA"]
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[64, 256], [1024, 4096]])
    assert axes.lines[0].get_marker() == "o"
    assert len(axes.collections) == 2
    panels.against_size(axes, (64, 1024), number, FIELD, marker="s")
    assert axes.lines[2].get_marker() == "s"


def test_a_heat_map_has_words_that_are_read_on_dark_and_on_light(axes):
    values = np.array([[0.0, 1.0, 0.2], [0.9, 0.4, 0.6]])
    shown = panels.heat_map(
        axes, values, ["a", "b"], ["x", "y", "z"], lambda i, j: f"{i}{j}", vmin=0, vmax=1
    )
    np.testing.assert_array_equal(shown.get_array(), values)
    assert [text.get_text() for text in axes.texts] == ["00", "01", "02", "10", "11", "12"]
    assert [text.get_position() for text in axes.texts[:4]] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    light = [to_rgba(text.get_color()) == to_rgba("white") for text in axes.texts]
    assert light == [True, False, True, False, True, False]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "z"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_a_heat_map_may_be_without_words(axes):
    panels.heat_map(axes, np.zeros((2, 2)), ["", ""], ["", ""])
    assert not axes.texts
