import itertools
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
MOST_LINES = 25
MACHINE_PATH = re.compile(
    r"(?<![\w.:/+])/(?:home|root|Users|tmp|work|opt|usr|var|mnt|private)/[\w.]"
)
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def read(path):
    return json.loads(path.read_text())


def source(cell):
    return "".join(cell["source"])


def code_cells(path):
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def texts(content):
    """Every string in a tree of lists and dicts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        parts = content.values() if isinstance(content, dict) else content
        yield from itertools.chain.from_iterable(map(texts, parts))


def expects_an_error(cell):
    return "raises-exception" in cell["metadata"].get("tags", [])


def test_there_are_chapters_and_each_has_its_own_number():
    assert CHAPTERS
    assert all(re.fullmatch(r"\d\d_[a-z_0-9]+", path.stem) for path in CHAPTERS)
    assert len({path.stem[:2] for path in CHAPTERS}) == len(CHAPTERS)


@every_chapter
def test_cells_were_run_in_order_from_a_fresh_start(path):
    counts = [cell["execution_count"] for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@every_chapter
def test_outputs_are_stored(path):
    assert any(cell["outputs"] for cell in code_cells(path))


@every_chapter
def test_errors_stand_only_where_they_are_meant(path):
    failed = [
        source(cell)
        for cell in code_cells(path)
        if any(output["output_type"] == "error" for output in cell["outputs"])
        != expects_an_error(cell)
    ]
    assert failed == []


@every_chapter
def test_no_code_cell_is_long(path):
    long = [source(c) for c in code_cells(path) if len(source(c).splitlines()) > MOST_LINES]
    assert long == []


@every_chapter
def test_no_path_of_a_machine_is_left(path):
    assert [text for text in texts(read(path)) if MACHINE_PATH.search(text)] == []


@every_chapter
def test_any_python_3_runs_it(path):
    assert read(path)["metadata"]["kernelspec"]["name"] == "python3"


@every_chapter
def test_a_cell_that_draws_ends_by_showing(path):
    unshown = [
        source(cell)
        for cell in code_cells(path)
        if re.search(r"\bplt\.", source(cell))
        and source(cell).rstrip().splitlines()[-1] != "plt.show()"
    ]
    assert unshown == []


@pytest.mark.parametrize("text", ["/home/someone/x", '"/tmp/x"', "in /root/.cache"])
def test_the_search_for_machine_paths_finds_them(text):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize(
    "text", ["https://example.org/home/x", "a/tmp/b", "1/2", "../work/x", "k+/opt/x"]
)
def test_the_search_for_machine_paths_leaves_other_slashes_alone(text):
    assert not MACHINE_PATH.search(text)
