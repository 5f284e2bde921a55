import numpy as np
import pytest

from soaa_edu import studies
from soaa_edu.studies.slides import adaptive_damping as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

LOSSES = dict.fromkeys(study.RULES, 0.2)
BATCHES = (64, 640)
UNCLEAR = np.array([0.2, 0.3, 0.1])


@pytest.fixture
def results(made_up, runs):
    """Made-up results: final losses at both batch sizes, or at one, and the solver's errors."""

    def make(losses=(), at_640=(), errors=(1e-12, 2e-12, 3e-12), seeds=3, refined=None):
        cells = {"solver": {"errors": errors}}
        for batch, changes in zip(BATCHES, ({}, dict(at_640)), strict=True):
            for rule, loss in (LOSSES | dict(losses) | changes).items():
                ends = loss + np.array([0, 0.001, -0.001])[:seeds]
                cells[f"method={rule} batch={batch}"] = runs(ends, seeds=seeds, best={"first": 2.0})
        for rule, loss in (refined or {}).items():
            finer = runs(loss, seeds=5, best={"first": 0.7})
            finer["search"]["scores"] = [0.21, 0.2, 0.22]
            cells[f"method={rule} batch=640 search=refined"] = finer
        return made_up("adaptive_damping", cells, {"batch_sizes": BATCHES, "epochs": 2})

    return make


@pytest.mark.parametrize("claim, rule", [("S10", "levenberg_marquardt"), ("S11", "trust_region")])
@pytest.mark.parametrize(
    "loss, at_640, answer",
    [
        (0.2, 0.2, HOLDS),
        (0.2, 0.5, IN_PART),
        (0.5, 0.5, DOES_NOT_HOLD),
        (UNCLEAR, UNCLEAR, OPEN),
    ],
)
def test_s10_and_s11_can_come_out_every_way(answers, results, claim, rule, loss, at_640, answer):
    found = results(losses={rule: loss}, at_640={rule: at_640})
    assert answers(found)[claim] == answer


@pytest.mark.parametrize(
    "changes, s10, s11",
    [
        (
            {"losses": {rule: 1.15 if rule == study.FIXED else 1.153 for rule in LOSSES}},
            IN_PART,
            IN_PART,
        ),
        ({"errors": (1e-3, 1.1e-3, 1.2e-3)}, HOLDS, IN_PART),
        ({"errors": (1e-12, 1e-2)}, HOLDS, IN_PART),
        ({"losses": {"trust_region": 0.5}, "errors": (1e-3, 1e-2)}, HOLDS, DOES_NOT_HOLD),
        ({"refined": LOSSES | {"trust_region": 0.5}}, HOLDS, IN_PART),
    ],
)
def test_lost_runs_the_solver_and_finer_searches_have_their_say(
    answers, results, changes, s10, s11
):
    assert answers(results(**changes)) == {"S10": s10, "S11": s11}


def test_tries_near_the_best_and_where_each_rule_began_are_told(results):
    found = results(refined=LOSSES)
    assert study.tries_near_the_best(found, "trust_region", 64) == 2
    assert study.tries_near_the_best(found, "trust_region", 640) == 3
    told = [finding.split(":")[0] for finding in studies.verdicts(found)[1].findings]
    assert told[2::3] == [
        "batch 64, Newton-Lanczos trust region from 2",
        "batch 640, Newton-Lanczos trust region from 0.7",
    ]


def test_a_run_is_lost_that_ends_above_half_the_loss_of_guessing(made_up, runs):
    ends = runs([0.2, 1.15, 1.16, 2.3, np.nan], seeds=5)
    found = made_up("adaptive_damping", {"method=trust_region batch=64": ends})
    np.testing.assert_array_equal(study.lost(found, "trust_region", 64), [0, 0, 1, 1, 1])


def test_the_figure_has_a_panel_for_each_batch_size_and_a_line_for_each_seed(draw, results):
    drawing = draw(results())
    assert [axes.get_title() for axes in drawing.axes] == ["batch 64", "batch 640"]
    assert [len(axes.lines) for axes in drawing.axes] == [9, 9]


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_the_dense_trust_region_meets_its_conditions(rng, shift):
    matrix = rng.normal(size=(6, 6))
    matrix, gradient = matrix + matrix.T - shift * np.eye(6), rng.normal(size=6)
    step = study.dense_trust_region(matrix, gradient, 0.1)
    residual = matrix @ step + gradient
    damping = -residual @ step / (step @ step)
    assert np.linalg.norm(step) == pytest.approx(0.1, rel=1e-9)
    np.testing.assert_allclose(residual + damping * step, 0, atol=1e-9)
    assert np.linalg.eigvalsh(matrix + damping * np.eye(6))[0] > 0
