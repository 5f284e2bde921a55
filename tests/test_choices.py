import numpy as np
import pytest

from soaa_edu import choices, studies

SEEDS = (0.98, 1.0, 1.02)


def found(network="MLP", steps=10, times=None, **losses):
    """A setting whose methods end at these losses, give or take a little from seed to seed."""
    by_seed = {method: loss * np.array(SEEDS) for method, loss in losses.items()}
    points = {method: {"learning_rate": 0.1} for method in losses}
    return choices.Setting(network, steps, by_seed, by_seed, points, times or {}, times or {})


def tabulated(monkeypatch, *found_settings):
    monkeypatch.setattr(choices, "settings", lambda folder: found_settings)
    return choices.by_steps().rows


def test_a_method_that_is_ahead_everywhere_stands_in_the_line_with_its_numbers(monkeypatch):
    first = found(sgd=1.2, adam=1.0, kfac=0.5, shampoo=1.0, times={"kfac": 3.0})
    second = found(sgd=1.0, adam=1.2, kfac=0.7, shampoo=0.5)
    (row,) = tabulated(monkeypatch, first, second)
    assert row["take"] == "K-FAC"
    assert row[choices.LOSS] == row[choices.FRESH] == "-50 to -30 %"
    assert row[choices.TIME] == "3.0"
    assert row["tuning chose"] == "rate 0.1"


def test_where_no_method_is_ahead_everywhere_the_line_says_first_order(monkeypatch):
    first = found(sgd=1.2, adam=1.0, kfac=0.5)
    second = found(sgd=1.0, adam=1.2, kfac=0.995)
    (row,) = tabulated(monkeypatch, first, second)
    assert row["take"] == "SGD or Adam"
    assert row[choices.LOSS] == "no other ahead in every setting"
    assert row["tuning chose"] == "SGD rate 0.1; Adam rate 0.1"


def test_seeds_that_disagree_carry_no_line():
    losses = {"adam": np.ones(3), "kfac": np.array([0.1, 1.2, 0.3])}
    assert losses["kfac"].mean() < 0.6
    assert not found(adam=1.0)._replace(losses=losses).ahead("kfac")


def test_steps_and_networks_have_lines_of_their_own(monkeypatch):
    rows = tabulated(
        monkeypatch,
        found(adam=1.0, kfac=0.5),
        found(adam=1.0, kfac=1.0, steps=100),
        found("ViT", adam=1.0, kfac=1.0),
    )
    named = [(row["steps"], row["network"], row["take"]) for row in rows]
    assert named == [
        ("fewer than 50", "MLP", "K-FAC"),
        ("fewer than 50", "ViT", "Adam"),
        ("50 to 1,000", "MLP", "Adam"),
    ]


def test_a_table_is_html_in_a_notebook_and_text_elsewhere():
    table = choices.Table([{"a": "1 < 2", "b": "3"}])
    page = table._repr_html_()
    assert page.count("<th ") == page.count("<td ") == 2
    assert "1 &lt; 2" in page
    assert repr(table).splitlines() == ["a      b", "1 < 2  3"]


@pytest.fixture(scope="module")
def stored():
    """The tables of the stored results."""
    return choices.settings(), choices.by_need().rows, choices.in_the_same_time().rows


def test_the_stored_settings_name_the_rival_with_the_lower_loss(stored):
    for setting in stored[0]:
        rivals = [setting.losses[m].mean() for m in ("sgd", "adam") if m in setting.losses]
        assert setting.losses[setting.first_order()].mean() == min(rivals)
        assert setting.points.keys() == setting.losses.keys() == setting.fresh.keys()


def test_what_one_needs_rests_on_stored_numbers(stored):
    assert [row["take"].split(",")[0] for row in stored[1]] == [
        "8-bit Adam",
        "the learning rate times the same factor",
    ]


def test_runs_are_compared_with_first_order_in_the_same_time(stored):
    results = studies.largest_stored("batch_sizes")
    seconds, _ = choices._timed(results, "mlp")
    longest = max(took for (m, _), took in seconds.items() if m in ("sgd", "adam"))
    listed = [row for row in stored[2] if row["network"] == "MLP"]
    assert all(float(row["seconds"]) <= 1.1 * longest + 0.05 for row in listed)


def test_nothing_stored_makes_empty_tables(tmp_path):
    assert choices.settings(tmp_path) == []
    for table in (choices.by_need(tmp_path), choices.in_the_same_time(tmp_path)):
        assert table._repr_html_() == repr(table) == choices.NOTHING
