import gzip
import hashlib
import io
import json
import re
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from soaa_edu.data import DataFileError, files, text
from soaa_edu.data.text import published

PLAY = "".join(f"Enter {i}.\n" for i in range(200)).encode()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder where files are looked for, and no network."""
    monkeypatch.setenv("SOAA_EDU_DATA", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    return tmp_path


@pytest.fixture
def small_play(monkeypatch):
    """A play of our own in the place of Tiny Shakespeare."""
    digest = hashlib.sha256(PLAY).hexdigest()
    file = published.SHAKESPEARE._replace(sha256=digest, size=len(PLAY))
    monkeypatch.setattr(published, "SHAKESPEARE", file)


def offline(address, timeout):
    raise urllib.error.URLError("no network")


def serving(content):
    return lambda address, timeout: io.BytesIO(content)


def rows(half):
    return [text.decode(row) for row in half]


def test_tiny_shakespeare_is_named_by_its_public_home_and_checksum():
    file = published.SHAKESPEARE
    assert file.address.startswith("https://raw.githubusercontent.com/karpathy/char-rnn/master/")
    assert file.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert file.size == 1_115_394


def test_without_a_named_folder_files_lie_in_the_cache_of_the_user(monkeypatch):
    monkeypatch.delenv("SOAA_EDU_DATA")
    assert files.data_folder() == Path.home() / ".cache" / "soaa_edu"


@pytest.mark.parametrize(
    "load, name, home",
    [
        (text.tiny_shakespeare, "tinyshakespeare.txt", "char-rnn, .*githubusercontent.com"),
        (text.imdb, "aclImdb_v1.tar.gz", "Maas et al. 2011.*ai.stanford.edu"),
        (text.squad, "train-v1.1.json", "SQuAD 1.1 .*rajpurkar.github.io"),
        (text.trivia_qa, "wikipedia-train.json", "TriviaQA .*cs.washington.edu/triviaqa"),
    ],
)
def test_an_absent_file_is_named_with_its_home_and_place(folder, load, name, home):
    place = re.escape(str(folder / name))
    with pytest.raises(DataFileError, match=rf"^{name} is missing.*{home}.*{place}.*SOAA_EDU_DATA"):
        load()


def test_tiny_shakespeare_is_read_and_its_end_held_out(folder, small_play):
    (folder / "tinyshakespeare.txt").write_bytes(PLAY)
    data = text.tiny_shakespeare(length=16)
    kept = len(PLAY) - len(PLAY) // 10
    assert "".join(rows(data.train[1])) == PLAY.decode()[: kept // 16 * 16]
    assert "".join(rows(data.test[1])) == PLAY.decode()[kept:][: (len(PLAY) - kept) // 16 * 16]


@pytest.mark.parametrize("content", [None, b"", PLAY[:-1], PLAY + b"."])
def test_tiny_shakespeare_is_fetched_once_and_only_on_request(
    folder, small_play, monkeypatch, content
):
    path = folder / "tinyshakespeare.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataFileError, match=r"^tinyshakespeare.txt .*Call again with fetch=True"):
        text.tiny_shakespeare(length=16)
    monkeypatch.setattr(urllib.request, "urlopen", serving(PLAY))
    fetched = text.tiny_shakespeare(length=16, fetch=True)
    assert path.read_bytes() == PLAY
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    again = text.tiny_shakespeare(length=16, fetch=True)
    np.testing.assert_array_equal(fetched.train[0], again.train[0])


@pytest.mark.parametrize(
    "urlopen, cause",
    [
        (offline, "no network"),
        (serving(PLAY[:-1]), "not hold the original"),
        (serving(PLAY + b"more"), "not hold the original"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(folder, small_play, monkeypatch, urlopen, cause):
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(DataFileError, match=rf"cannot be fetched .*{cause}.*put it at"):
        text.tiny_shakespeare(fetch=True)
    assert list(folder.iterdir()) == []


REVIEWS = {
    "train/pos/0_9.txt": "Good.<br /><br />Very good.",
    "train/pos/10_7.txt": "Fine",
    "train/neg/0_3.txt": "Bad é",
    "train/neg/10_1.txt": "Awful",
    "train/unsup/0_0.txt": "Unlabelled",
    "test/pos/0_10.txt": "Nice",
    "test/neg/0_2.txt": "Poor",
    "train/urls_pos.txt": "http",
    "README": "Read me",
}


def archive(reviews):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in reviews.items():
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(content.encode())
            tar.addfile(member, io.BytesIO(content.encode()))
        for kind, name in (
            (tarfile.SYMTYPE, "1_9"),
            (tarfile.LNKTYPE, "2_9"),
            (tarfile.DIRTYPE, "3_9"),
        ):
            link = tarfile.TarInfo(f"aclImdb/train/pos/{name}.txt")
            link.type, link.linkname = kind, "aclImdb/README"
            tar.addfile(link)
    return buffer.getvalue()


@pytest.fixture
def reviews(folder):
    path = folder / "aclImdb_v1.tar.gz"
    path.write_bytes(gzip.compress(archive(REVIEWS)))
    return path


def test_imdb_to_classify(reviews):
    data = text.imdb(length=8)
    assert rows(data.train[0]) == [
        "Bad \ufffd···",
        "Good.\n\nV",
        "Awful···",
        "Fine····",
    ]
    np.testing.assert_array_equal(data.train[1], [0, 1, 0, 1])
    assert rows(data.test[0]) == ["Poor····", "Nice····"]
    np.testing.assert_array_equal(data.test[1], [0, 1])
    assert data.train[0].dtype == data.train[1].dtype == np.int32
    assert list(reviews.parent.iterdir()) == [reviews]


def test_imdb_to_model(reviews):
    data = text.imdb("text", length=5)
    assert "".join(rows(data.train[1])) == "Bad \ufffd\nGood.\n\nVery good.\nAwful\nFine\n"[:35]
    assert rows(data.test[1]) == ["Poor\n", "Nice\n"]
    assert rows(data.test[0]) == ["▸Poor", "\nNice"]
    assert text.masked(data).train[0].shape == data.train[0].shape


def cut_off(content):
    return content[: len(content) * 2 // 3]


def flip_the_checksum(content):
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


@pytest.mark.parametrize(
    "damage",
    [
        cut_off,
        flip_the_checksum,
        lambda content: content[:-4],
        lambda content: b"",
        lambda content: b"not an archive",
        lambda content: gzip.compress(b"not an archive" * 100),
        lambda content: gzip.compress(archive({"README": "Read me"})),
    ],
)
def test_a_damaged_archive_is_named_with_the_remedy(reviews, damage):
    reviews.write_bytes(damage(reviews.read_bytes()))
    place = re.escape(str(reviews))
    with pytest.raises(DataFileError, match=rf"^aclImdb_v1.tar.gz cannot be read.*{place}"):
        text.imdb()


def article(passage, *questions):
    qas = [
        {"id": str(i), "question": q, "answers": [{"answer_start": 0, "text": passage[:3]}]}
        for i, q in enumerate(questions)
    ]
    return {"title": "T", "paragraphs": [{"context": passage, "qas": qas}]}


SQUAD = {
    "train-v1.1.json": [
        article("Ann ran.", "Who?", "Did what?"),
        article("Bob sat."),
        article("Cy", "?"),
    ],
    "dev-v1.1.json": [article("Dan hid.", "Where?"), article("Eve saw.", "What?")],
}


@pytest.fixture
def squad_files(folder):
    for name, data in SQUAD.items():
        (folder / name).write_text(json.dumps({"version": "1.1", "data": data}))
    return folder


def test_squad_to_classify(squad_files):
    data = text.squad(length=24)
    (x, y), (test_x, test_y) = data
    np.testing.assert_array_equal(y, [1, 0] * 3)
    np.testing.assert_array_equal(test_y, [1, 0] * 2)
    pairs = [row.rstrip("·").split("\n") for row in rows(x)]
    assert pairs[0::2] == [["Who?", "Ann ran."], ["Did what?", "Ann ran."], ["?", "Cy"]]
    for (question, own), (again, other) in zip(pairs[0::2], pairs[1::2]):
        assert question == again
        assert other in {"Ann ran.", "Bob sat.", "Cy"} - {own}
    assert rows(test_x)[1] == "Where?\nEve saw.·········"
    draws = {tuple(rows(text.squad(length=24, seed=seed).train[0])) for seed in range(9)}
    assert 1 < len(draws) <= 8


def test_squad_to_model(squad_files):
    data = text.squad("text", length=4)
    assert "".join(rows(data.train[1])) == "Ann ran.\nWho?\nDid what?\nBob sat.\nCy\n?\n"[:36]
    assert "".join(rows(data.test[1])) == "Dan hid.\nWhere?\nEve saw.\nWhat?\n"[:28]


def trivia(question, answer, *aliases):
    return {
        "Question": question,
        "QuestionId": "q",
        "Answer": {"Value": answer, "Aliases": list(aliases), "Type": "FreeForm"},
    }


TRIVIA = {
    "train": [
        trivia("Red planet?", "Mars", "MARS", "Ares"),
        trivia("God of war?", "Ares", "Mars"),
        trivia("Largest?", "Jupiter"),
    ],
    "dev": [trivia("Ringed?", "Saturn"), trivia("Third?", "Earth")],
}


@pytest.fixture(params=["wikipedia", "unfiltered-web"])
def trivia_part(request, folder):
    for half, data in TRIVIA.items():
        content = json.dumps({"Domain": "Web", "Split": half, "Version": 1.0, "Data": data})
        (folder / f"{request.param}-{half}.json").write_text(content)
    return request.param


def test_trivia_qa_to_classify(trivia_part):
    (x, y), (test_x, _) = text.trivia_qa(part=trivia_part, length=20)
    np.testing.assert_array_equal(y, [1, 0] * 3)
    pairs = [row.rstrip("·").split("\n") for row in rows(x)]
    assert pairs[:5] == [
        ["Red planet?", "Mars"],
        ["Red planet?", "Jupiter"],
        ["God of war?", "Ares"],
        ["God of war?", "Jupiter"],
        ["Largest?", "Jupiter"],
    ]
    assert pairs[5][1] in ("Mars", "Ares")
    assert rows(test_x[1::2]) == ["Ringed?\nEarth·······", "Third?\nSaturn·······"]


def test_trivia_qa_to_model(trivia_part):
    data = text.trivia_qa("text", part=trivia_part, length=5)
    written = "Red planet?\nMars\nGod of war?\nAres\nLargest?\nJupiter\n"
    assert "".join(rows(data.train[1])) == written[: len(written) // 5 * 5]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"data": [',
        b"\xff\xfe",
        b"[]",
        b'{"version": "1.1"}',
        b'{"data": [], "Data": []}',
        b'{"data": 3, "Data": 3}',
        b'{"data": [{"paragraphs": [{"context": 1, "qas": []}]}], "Data": [{"Question": 1}]}',
        json.dumps({"data": [article("Ann", "?")], "Data": [trivia("?", "Ann")]}).encode(),
        json.dumps({"data": [article("A"), article("B")], "Data": [trivia(2, "Ann")]}).encode(),
    ],
)
@pytest.mark.parametrize(
    "load, name", [(text.squad, "dev-v1.1.json"), (text.trivia_qa, "wikipedia-dev.json")]
)
def test_a_damaged_json_file_is_named_with_the_remedy(squad_files, folder, load, name, content):
    (folder / "wikipedia-train.json").write_text(json.dumps({"Data": TRIVIA["train"]}))
    (folder / name).write_bytes(content)
    place = re.escape(str(folder / name))
    with pytest.raises(DataFileError, match=rf"^{name} cannot be read .*Download {name} .*{place}"):
        load()


@pytest.mark.parametrize("load", [text.imdb, text.squad, text.trivia_qa])
def test_other_tasks_are_refused(load):
    with pytest.raises(ValueError, match="task must be one of 'classification', 'text'"):
        load("translation")


def test_other_parts_are_refused():
    with pytest.raises(ValueError, match="part must be one of 'wikipedia', 'web'"):
        text.trivia_qa(part="news")
