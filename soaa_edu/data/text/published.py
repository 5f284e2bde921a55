"""Published text: Tiny Shakespeare, the reviews of IMDB, the questions of SQuAD and TriviaQA.

Only the first can be fetched. The files of the others are put in place by hand; an error says where
they come from and where they go. A file is looked for in the folder that the environment variable
``SOAA_EDU_DATA`` names, or else in ``.cache/soaa_edu`` in the user's home folder.
"""

import gzip
import re
import tarfile

import numpy as np

from soaa_edu import checks
from soaa_edu.data import files
from soaa_edu.data.dataset import Dataset
from soaa_edu.data.files import Published
from soaa_edu.data.text.alphabet import encode
from soaa_edu.data.text.rows import padded, text_to_model, windows

TASKS = ("classification", "text")

SHAKESPEARE = Published(
    "tinyshakespeare.txt",
    "Tiny Shakespeare (char-rnn, Karpathy 2015)",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    1_115_394,
)
IMDB = Published(
    "aclImdb_v1.tar.gz",
    "the Large Movie Review Dataset (Maas et al. 2011)",
    "https://ai.stanford.edu/~amaas/data/sentiment/",
)
IMDB_MEMBER = re.compile(r"aclImdb/(train|test)/(neg|pos)/(\d+)_\d+\.txt")
SQUAD = "SQuAD 1.1 (Rajpurkar et al. 2016)", "https://rajpurkar.github.io/SQuAD-explorer/"
TRIVIA_QA = "TriviaQA (Joshi et al. 2017)", "https://nlp.cs.washington.edu/triviaqa/"
TRIVIA_QA_PARTS = ("wikipedia", "web", "unfiltered-web")


def tiny_shakespeare(*, length: int = 64, fetch: bool = False) -> Dataset:
    """A million characters of Shakespeare's plays, ``tinyshakespeare.txt``, as text to model.

    The last tenth of the text is the test set.

    Args:
        length: characters in a row, T.
        fetch: download the file (1.1 MB) when it is missing or damaged.

    Returns:
        ``Dataset`` with ``x`` and ``y`` int32 ``(n, T)``: ``y`` is the text row by row, ``x`` the
        character before each.

    Raises:
        DataFileError: the file is missing, truncated or altered, or cannot be downloaded.
        ValueError: ``length`` is not a whole number, or longer than the test set.
    """
    try:
        text = _read_shakespeare()
    except files.DataFileError:
        if not fetch:
            raise
        files.fetch(SHAKESPEARE)
        text = _read_shakespeare()
    return text_to_model(encode(text), length)


def imdb(task: str = "classification", *, length: int = 512) -> Dataset:
    """The 25,000 training and 25,000 test reviews of films in ``aclImdb_v1.tar.gz``.

    Negative and positive reviews alternate, in the order of their numbers. The unlabelled reviews
    are left out. Line breaks, ``<br />`` in the file, become newlines.

    Args:
        task: ``"classification"``, is the review positive; or ``"text"``, to learn the next
            character from, the reviews one after another.
        length: characters in a row, T. A review that is classified is cut off there.

    Returns:
        ``Dataset`` with ``x`` int32 ``(n, T)``; ``y`` int32 ``(n,)``, 1 for positive and 0 for
        negative, or for ``"text"`` ``(n, T)``, the characters that ``x`` precedes.

    Raises:
        DataFileError: the archive is missing, truncated or of another format.
        ValueError: another task, or ``length`` is not a whole number or longer than a text.
    """
    checks.one_of("task", task, TASKS)
    reviews: dict[str, list[tuple[int, int, str]]] = {"train": [], "test": []}
    with (
        files.reading(IMDB) as path,
        gzip.open(path) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r:") as archive,
    ):
        for member in archive:
            named = IMDB_MEMBER.fullmatch(member.name)
            content = archive.extractfile(member) if named and member.isfile() else None
            if named and content:
                half, kind, number = named.groups()
                text = content.read().decode("utf-8", "replace").replace("<br />", "\n")
                reviews[half].append((int(number), int(kind == "pos"), text))
        _read_to_the_checksum(unpacked)
        if not all(reviews.values()):
            raise ValueError("it holds no training or no test reviews")
    halves = [[(text, label) for _, label, text in sorted(half)] for half in reviews.values()]
    if task == "text":
        return _text_to_model([[text for text, _ in half] for half in halves], length)
    return _to_classify(halves, length)


def squad(task: str = "classification", *, length: int = 512, seed: int = 0) -> Dataset:
    """Questions on passages of Wikipedia, ``train-v1.1.json`` and ``dev-v1.1.json`` of SQuAD 1.1.

    Args:
        task: ``"classification"``, does the passage answer the question; or ``"text"``, to learn
            the next character from, each passage with its questions.
        length: characters in a row, T. A pair that is classified, question first, is cut off there.
        seed: draws the passages that don't answer.

    Returns:
        ``Dataset`` with ``x`` int32 ``(n, T)``. For ``"classification"`` each question stands twice
        in turn, with its own passage, ``y`` 1, and with another one, ``y`` 0; ``y`` int32 ``(n,)``.
        For ``"text"`` ``y`` is ``(n, T)``, the characters that ``x`` precedes.

    Raises:
        DataFileError: a file is missing, truncated or of another format.
        ValueError: another task, or ``length`` is not a whole number or longer than a text.
    """
    checks.one_of("task", task, TASKS)
    halves = [_read_squad(Published(f"{half}-v1.1.json", *SQUAD)) for half in ("train", "dev")]
    if task == "text":
        return _text_to_model(
            [[line for p, qs in half for line in (p, *qs)] for half in halves], length
        )
    return _to_classify(
        [_passage_pairs(half, rng) for half, rng in zip(halves, _streams(seed))], length
    )


def trivia_qa(
    task: str = "classification", *, part: str = "wikipedia", length: int = 128, seed: int = 0
) -> Dataset:
    """Trivia questions and their answers, the JSON files of TriviaQA without its documents.

    Args:
        task: ``"classification"``, is this the answer to the question; or ``"text"``, to learn the
            next character from, each question and its answer on a line of their own.
        part: ``"wikipedia"``, ``"web"`` or ``"unfiltered-web"``: reads ``{part}-train.json`` and
            ``{part}-dev.json`` (in the published archives, the first two lie in ``qa``).
        length: characters in a row, T. A pair that is classified, question first, is cut off there.
        seed: draws the answers to other questions.

    Returns:
        ``Dataset`` with ``x`` int32 ``(n, T)``. For ``"classification"`` each question stands twice
        in turn, with its own answer, ``y`` 1, and with the answer to another question that is none
        of its own answer's names, ``y`` 0; ``y`` int32 ``(n,)``. For ``"text"`` ``y`` is
        ``(n, T)``, the characters that ``x`` precedes.

    Raises:
        DataFileError: a file is missing, truncated or of another format.
        ValueError: another task or part, or ``length`` is not a whole number or longer than a text.
    """
    checks.one_of("task", task, TASKS)
    checks.one_of("part", part, TRIVIA_QA_PARTS)
    halves = [
        _read_trivia(Published(f"{part}-{half}.json", *TRIVIA_QA)) for half in ("train", "dev")
    ]
    if task == "text":
        return _text_to_model(
            [[line for q, a, _ in half for line in (q, a)] for half in halves], length
        )
    return _to_classify(
        [_answer_pairs(half, rng) for half, rng in zip(halves, _streams(seed))], length
    )


def _read_shakespeare() -> str:
    with files.reading(SHAKESPEARE) as path:
        return files.verified(SHAKESPEARE, path.read_bytes()).decode()


def _read_to_the_checksum(unpacked: gzip.GzipFile) -> None:
    while unpacked.read(1 << 20):
        pass


def _read_squad(file: Published) -> list[tuple[str, list[str]]]:
    """Passages with their questions."""
    with files.reading(file) as path:
        passages = [
            (_text(paragraph["context"]), [_text(asked["question"]) for asked in paragraph["qas"]])
            for article in files.read_json(path)["data"]
            for paragraph in article["paragraphs"]
        ]
        if len({passage for passage, _ in passages}) < 2 or not any(qs for _, qs in passages):
            raise ValueError("it holds no questions, or no two passages")
    return passages


def _passage_pairs(
    passages: list[tuple[str, list[str]]], rng: np.random.Generator
) -> list[tuple[str, int]]:
    pairs = []
    for passage, questions in passages:
        for question in questions:
            other = passage
            while other == passage:
                other = passages[rng.integers(len(passages))][0]
            pairs += [(f"{question}\n{passage}", 1), (f"{question}\n{other}", 0)]
    return pairs


def _read_trivia(file: Published) -> list[tuple[str, str, set[str]]]:
    """Questions, answers, and all the names of each answer in lower case."""
    with files.reading(file) as path:
        questions = []
        for asked in files.read_json(path)["Data"]:
            answer = asked["Answer"]
            value = _text(answer["Value"])
            names = {_text(name).lower() for name in [value, *answer["Aliases"]]}
            questions.append((_text(asked["Question"]), value, names))
        answers = {value.lower() for _, value, _ in questions}
        if not questions or any(answers <= names for *_, names in questions):
            raise ValueError("it holds no two questions with different answers")
    return questions


def _answer_pairs(
    questions: list[tuple[str, str, set[str]]], rng: np.random.Generator
) -> list[tuple[str, int]]:
    pairs = []
    for question, answer, names in questions:
        other = answer
        while other.lower() in names:
            other = questions[rng.integers(len(questions))][1]
        pairs += [(f"{question}\n{answer}", 1), (f"{question}\n{other}", 0)]
    return pairs


def _to_classify(halves: list[list[tuple[str, int]]], length: int) -> Dataset:
    """Texts with their labels."""
    train, test = (
        (padded([text for text, _ in half], length), np.array([y for _, y in half], np.int32))
        for half in halves
    )
    return Dataset(train, test)


def _text_to_model(halves: list[list[str]], length: int) -> Dataset:
    """Texts one after another, each with a newline at its end."""
    train, test = (
        windows(encode("".join(text + "\n" for text in half)), length) for half in halves
    )
    return Dataset(train, test)


def _streams(seed: int) -> list[np.random.Generator]:
    """A stream of draws for the training set and one for the test set."""
    return [np.random.default_rng([seed, half]) for half in (0, 1)]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text was expected, not {value!r}"[:100])
    return value
