import jax
import numpy as np
import pytest

from soaa_edu.studies.poster import psgd_criterion as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

SIZES = (64, 4096)
ITERATIONS = 128
TINY = study.Settings(
    train_size=640, batch_sizes=(64,), iterations=4, probes=16, probe_examples=256, seeds=1
)
BEHIND, LEVEL = np.array([0.6, 0.61, 0.59]), np.array([0.3, 0.301, 0.299])


@pytest.fixture
def results(made_up):
    """Excesses at the end of both batch sizes, of the large one after as many examples, a race."""

    def make(small=0.5, large=0.5, large_early=2.0, seeds=3, psgd=BEHIND):
        def curve(end, early, seed):
            values = np.full(len(study.checkpoints(ITERATIONS)), 3.0)
            values[:2] = early
            values[-1] = np.broadcast_to(end, seeds)[seed] * (1 + 0.01 * seed)
            return 1 + values

        cells = {
            f"fit={seed}": {
                "best": 10.0,
                "ratios": {"64": curve(small, 3.0, seed), "4096": curve(large, large_early, seed)},
            }
            for seed in range(seeds)
        }
        cells |= {"method=psgd batch=1024": psgd, "method=shampoo batch=1024": LEVEL}
        settings = {"batch_sizes": SIZES, "iterations": ITERATIONS, "raced_batch": 1024}
        return made_up("psgd_criterion", cells, settings)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"large": 0.58}, HOLDS),
        ({"large_early": 0.5}, HOLDS),
        ({"psgd": LEVEL}, IN_PART),
        ({"psgd": np.array([0.1, 0.3, 0.9])}, IN_PART),
        ({"large": 0.2}, DOES_NOT_HOLD),
        ({"large": 0.9}, DOES_NOT_HOLD),
        ({"large": 0.2, "large_early": 0.6}, DOES_NOT_HOLD),
        ({"large": np.array([0.1, 0.9, 0.4])}, OPEN),
    ],
)
def test_p2_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes)) == {"P2": answer}


def test_the_excess_after_as_many_examples_is_told_and_decides_nothing(results):
    made_up = results(small=0.5, large_early=2.0)
    expected = 2.0 / 0.5 / (1 + 0.01 * np.arange(3))
    np.testing.assert_allclose(study.at_equal_samples(made_up), expected, rtol=1e-5)
    (verdict,) = study.verdicts(made_up)
    assert verdict.findings[-1].endswith("after as many examples: 3.96 ± 0.04 times the excess")


def test_the_figure_shows_each_batch_size_against_iterations_and_examples(draw, results):
    left, right = draw(results()).axes
    assert len(left.lines) == len(right.lines) == len(SIZES)
    assert left.lines[0].get_xdata()[-1] == ITERATIONS
    assert right.lines[1].get_xdata()[-1] == ITERATIONS * 4096


def test_psgd_and_shampoo_race_at_the_large_batch_on_as_many_tries():
    cells = study.cells(TINY._replace(raced_batch=1024, raced_images=2048))
    assert list(cells)[1:] == ["method=psgd batch=1024", "method=shampoo batch=1024"]
    tries = (cell.compute.args[3]["learning_rate"] for cell in list(cells.values())[1:])
    assert [len(rates) for rates in tries] == [TINY.tries] * 2


def test_the_best_of_gaussian_pairs_is_the_geometric_mean(rng):
    vs = rng.normal(size=(2000, 1, 3, 2))
    scale = np.array([1.0, 4.0, 9.0])[:, None]
    best = study.best_criterion(vs, scale * vs)
    expected = 2 * np.mean(np.sum(scale * vs**2, axis=(1, 2, 3)))
    assert best == pytest.approx(expected, rel=0.02)
    assert best <= expected
    diagonal = study.best_criterion(vs[:, 0, :, 0], (scale * vs)[:, 0, :, 0])
    assert diagonal == pytest.approx(2 * np.mean(np.sum(scale * vs[..., :1] ** 2, axis=(1, 2, 3))))


def test_no_fit_beats_the_best_and_each_comes_nearer():
    compute = study.cells(TINY)["fit=0"]
    for ratios in compute()["ratios"].values():
        assert min(ratios) > 1
        assert ratios[-1] < ratios[0]


def test_the_response_is_the_damped_hessian_product(classifier, rng):
    objective, params = classifier()
    batch = rng.normal(size=(5, 12)), rng.integers(4, size=5)
    v = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    found = study.response(objective, params, batch, v)

    def gradient(t):
        moved = jax.tree.map(lambda p, d: p + t * d, params, v)
        return jax.grad(objective)(moved, batch)

    difference = jax.tree.map(lambda a, b: (a - b) / 2e-5, gradient(1e-5), gradient(-1e-5))
    jax.tree.map(
        lambda f, d, v: np.testing.assert_allclose(f, d + study.DAMPING * v, atol=1e-7),
        found,
        difference,
        v,
    )
