import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from soaa_edu import plotting


@pytest.fixture
def axes(close_figures):
    return plt.figure().add_subplot()


@pytest.mark.parametrize(
    "values, bins, means",
    [
        ([1, 2, 3, 4], 2, [1.5, 3.5]),
        ([1, 2, 3, 4, 5], 2, [2, 4.5]),
        ([[1, 3], [5, 7]], 1, [[2], [6]]),
        ([1, np.nan, 3], 3, [1, np.nan, 3]),
    ],
)
def test_bins_are_means_over_even_stretches(values, bins, means):
    np.testing.assert_array_equal(plotting.binned(values, bins), means)


def test_a_band_is_the_mean_and_one_standard_deviation(axes, rng):
    x, runs = np.arange(3), rng.normal(size=(5, 3))
    plotting.band(axes, x, runs, label="runs", color="red", linestyle="--")
    (line,), (area,) = axes.lines, axes.collections
    np.testing.assert_allclose(line.get_ydata(), runs.mean(axis=0))
    assert (line.get_label(), line.get_color(), line.get_linestyle()) == ("runs", "red", "--")
    corners = area.get_paths()[0].vertices
    for i, point in enumerate(x):
        heights = corners[corners[:, 0] == point, 1]
        spread = runs[:, i].std(ddof=1)
        np.testing.assert_allclose(heights.max(), runs[:, i].mean() + spread)
        np.testing.assert_allclose(heights.min(), runs[:, i].mean() - spread)


def test_one_run_has_no_band(axes):
    plotting.band(axes, [0, 1], [[2.0, 3.0]], label="run", color="red")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [2, 3])
    assert not axes.collections


def test_contours_are_level_lines_of_the_function(axes):
    plotting.contours(axes, lambda x: x[0] + 10 * x[1], (0, 1), (2, 3), levels=[25.0])
    (path,) = axes.collections[0].get_paths()
    np.testing.assert_allclose(path.vertices @ [1, 10], 25, rtol=1e-5)
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (2, 3))


def test_a_path_has_a_dot_for_each_iterate(axes):
    points = jnp.array([[0.0, 1.0], [2.0, 3.0], [4.0, 6.0]])
    plotting.path(axes, points, label="way", color="red")
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xydata(), points)
    assert line.get_marker() == "o"


def test_the_style_draws_in_the_books_colours(close_figures):
    with plt.rc_context():
        plotting.use_style()
        lines = plt.figure().add_subplot().plot(np.eye(3))
        assert [line.get_color() for line in lines] == list(plotting.PALETTE[:3])


def test_the_palette_has_colours_that_every_reader_can_tell_apart():
    colours = np.array([to_rgba(colour)[:3] for colour in plotting.PALETTE])
    apart = np.abs(colours[:, None] - colours).max(axis=-1) + np.eye(len(colours))
    assert apart.min() > 0.2


def test_save_writes_a_png_and_closes_the_figure(tmp_path):
    figure = plt.figure()
    plotting.save(figure, tmp_path / "picture.png")
    assert plt.imread(tmp_path / "picture.png").ndim == 3
    assert not plt.fignum_exists(figure.number)


@pytest.mark.parametrize(
    "sizes, ticks",
    [([64, 1024], ["64", "1,024"]), ([1, 2, 4, 8, 16, 32], ["1", "4", "16"])],
)
def test_sizes_stand_at_ticks_of_their_own(axes, sizes, ticks):
    axes.plot(sizes, sizes)
    plotting.sizes_axis(axes, sizes)
    axes.figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels()] == ticks
    assert axes.get_xticklabels(minor=True) == []
    assert axes.get_xscale() == "log"
