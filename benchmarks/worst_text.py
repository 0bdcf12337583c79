"""Search for the text that takes a worker longest: `python -m benchmarks.worst_text`.

An evolutionary search over fragments of text maximizes the tokenizer's processor time for a character. The worst texts
then go through all the steps of a worker, in requests of many shapes within the limits, and in batches of such
requests.
The seed decides the texts that are tried first; what is measured decides the rest, so results vary a little.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks.sides import ROOT
from handler import batch
from handler.classifier import TextClassifier
from handler.limits import Limits
from handler.reply import Model
from handler.service import MODEL_FOLDER

ARCHIVE = ROOT / "model_store" / "sentiment.mar"
MAX_REQUESTS: Final = 16
"""`batchSize` in `config.properties`."""

POOL: Final = 12
MAX_FRAGMENTS: Final = 6
TEXTS_SHARE: Final = 0.6
"""Of the time: for texts. The rest is for requests."""

NEW_CHARACTER: Final = "<new character>"
NEW_WORD: Final = "<new word>"
"""Fragments that are other characters each time, so that no word comes twice."""

FRAGMENTS: Final = (
    *(NEW_CHARACTER, NEW_WORD, NEW_CHARACTER, NEW_WORD),
    *"()[]{}\"'`.,;:!?…–—-_^/|~*+=<>#@&%$€°«»“”‘’¿¡\\",
    *(
        "''",
        "...",
        "....",
        "……",
        "--",
        "US$",
        "'s",
        "’S",
        "°C.",
        "😀",
        "👍🏽",
        "🇬🇧",
        "👨‍👩‍👧",
        "\u200d",
        "\u200b",
        "\ufeff",
    ),
    *("9", "10", "9km", "5m²", "9$", "3:45pm", "1,000.50", "1-2", "½", "١", "12345678901234567890"),
    *("a", "x", "A", "B", "AB", "Ab", "ABC ", "Abc ", "é", "É", "İ", "ß", "ǅ", "a\u0301", "\u0301", "飞", "😀$—", "()"),
    *(
        "word",
        "flight",
        "the ",
        "thank you ",
        "a a a ",
        "aaa",
        "aaaa ",
        "a b ",
        "http://",
        "b.co",
        ".com",
        "user@x.org",
    ),
    *(
        "www.x.co/y?z#",
        "1:@",
        "a:b@",
        "a.b",
        "a.B",
        "a-b",
        "can't",
        "U.S.",
        "e.g.",
        "o'clock",
        "a.m.",
        "xxunk",
        "xxpad",
    ),
    *(":)", ":-(", "):", "(:", "xD", "8)", "O.o", "<3", "¯\\(ツ)/¯", "C++", "<space>", "<br />", "<unk>", "@.@", "@-@"),
    *("&amp;", "&lt;", "&#39;", "&#x1F600;", "&#", "&notit;", "&nGt;", "&", "amp;", "#39;", "quot;", "\\n", '\\"'),
    *(" ", " ", " ", "  ", "\n", "\t", "\r\n", "\u2028", "\xa0", "\x1c", "\x85", "\u3000"),
)


@dataclass(frozen=True)
class Candidate:
    """Fragments that are repeated in the first part of a text, others in the rest."""

    head: tuple[str, ...]
    tail: tuple[str, ...]
    head_share: float

    def text(self, characters: int) -> str:
        head = _repeated(self.head, round(characters * self.head_share))
        return head + _repeated(self.tail, characters - len(head))

    def __str__(self) -> str:
        parts = [(self.head, self.head_share), (self.tail, 1 - self.head_share)]
        return ", ".join(f"{share:.0%} {' '.join(map(ascii, part))}" for part, share in parts if share > 0)


@dataclass(frozen=True)
class Shape:
    """What a request is made of."""

    texts: int
    characters: int
    """Of each text."""

    kind: batch.Kind = batch.Kind.PREDICT


@dataclass(frozen=True)
class Measured:
    """A request, or a batch of the same, and what it took."""

    candidate: Candidate
    shape: Shape
    tokens: int
    """Of the texts that were tokenized."""

    statuses: dict[int, int]
    seconds: float
    beside: Shape | None = None
    """The requests that make it a whole batch, where it is not a batch of the same."""


def _repeated(fragments: Sequence[str], characters: int) -> str:
    numbers = count()
    made: list[str] = []
    length = 0
    while length < characters:
        for fragment in fragments:
            made.append(_filled(fragment, next(numbers)))
            length += len(made[-1])
    return "".join(made)[:characters]


def _filled(fragment: str, number: int) -> str:
    if fragment == NEW_CHARACTER:
        return chr(0x20000 + number % 42_000)
    if fragment == NEW_WORD:
        return "".join(chr(ord("a") + number // 26**place % 26) for place in range(3))
    return fragment


def candidates(generator: random.Random, pool: Sequence[Candidate]) -> Candidate:
    """A new candidate: one at random, or one of the pool changed, or two of it crossed."""
    chance = generator.random()
    if not pool or chance < 0.15:
        return Candidate(_fragments(generator), _fragments(generator), generator.choice((0.25, 0.4, 0.5, 0.75, 1.0)))
    # The better ones, which stand first, more often.
    one = pool[min(generator.randrange(len(pool)), generator.randrange(len(pool)))]
    if chance < 0.3:
        return replace(one, tail=generator.choice(pool).head)
    if chance < 0.4:
        return replace(one, head_share=generator.choice((0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)))
    if chance < 0.8:
        return replace(one, head=_changed(generator, one.head))
    return replace(one, tail=_changed(generator, one.tail))


def _fragments(generator: random.Random) -> tuple[str, ...]:
    return tuple(generator.choices(FRAGMENTS, k=generator.randint(1, 4)))


def _changed(generator: random.Random, fragments: tuple[str, ...]) -> tuple[str, ...]:
    place = generator.randrange(len(fragments))
    match generator.choice(("replace", "insert", "remove", "double")):
        case "insert" if len(fragments) < MAX_FRAGMENTS:
            return (*fragments[:place], generator.choice(FRAGMENTS), *fragments[place:])
        case "remove" if len(fragments) > 1:
            return (*fragments[:place], *fragments[place + 1 :])
        case "double" if len(fragments) < MAX_FRAGMENTS:
            return (*fragments[: place + 1], *fragments[place:])
        case _:
            return (*fragments[:place], generator.choice(FRAGMENTS), *fragments[place + 1 :])


def worst_texts(
    cost: Callable[[str], float], characters: int, seed: int, going_on: Iterator[object]
) -> list[tuple[float, Candidate]]:
    """The candidates whose texts cost most, the worst first.

    Args:
        characters: of each text.
        going_on: one step of the search for each of its items.
    """
    generator = random.Random(seed)
    pool: list[tuple[float, Candidate]] = []
    for _ in going_on:
        candidate = candidates(generator, [one for _, one in pool])
        text = candidate.text(characters)
        if any(candidate == one for _, one in pool) or not text.strip():
            continue
        value = cost(text)
        if len(pool) == POOL and value > pool[-1][0]:
            value = min(value, cost(text))  # whatever else the machine does only adds to it
        pool = sorted([*pool, (value, candidate)], key=lambda found: -found[0])[:POOL]
    return pool


def tokenizer_seconds(classifier: TextClassifier) -> Callable[[str], float]:
    """The processor time that a text's tokens take, with no word kept from before."""

    def cost(text: str) -> float:
        classifier.forget()
        started = time.process_time()
        classifier.ids(text)
        return time.process_time() - started

    return cost


def shapes(limits: Limits) -> list[Shape]:
    """Requests within the limits of characters and texts."""
    longest, most = limits.max_text_characters, limits.max_request_characters
    counts = [1, 4, most // longest, 40, 100, 200, 400, limits.max_texts]
    predicted = [Shape(texts, min(longest, most // texts)) for texts in counts]
    explained = [
        Shape(1, 280, batch.Kind.EXPLAIN),
        Shape(4, 140, batch.Kind.EXPLAIN),
        Shape(12, 80, batch.Kind.EXPLAIN),
    ]
    return predicted + explained


def changed_shape(generator: random.Random, shape: Shape, limits: Limits) -> Shape:
    """A request of a little more or fewer texts, or longer or shorter ones, within the limits."""
    texts = min(max(1, round(shape.texts * generator.uniform(0.7, 1.4))), limits.max_texts)
    longest = min(limits.max_text_characters, limits.max_request_characters // texts)
    return replace(
        shape, texts=texts, characters=min(max(1, round(shape.characters * generator.uniform(0.7, 1.4))), longest)
    )


def measured(
    classifier: TextClassifier,
    limits: Limits,
    candidate: Candidate,
    shape: Shape,
    requests: int = 1,
    beside: Shape | None = None,
) -> Measured:
    """Such requests through all the steps of a worker.

    Args:
        beside: the shape of further requests, which fill the batch.
    """
    rows = [_row(candidate, shape)] * requests
    if beside is not None:
        rows += [_row(candidate, beside)] * (MAX_REQUESTS - requests)
    classifier.forget()
    started = time.process_time()
    results, measurements = batch.infer(batch.read(rows, limits), classifier, limits)
    replies = batch.write(results, Model("", "", classifier.task, {}), limits)
    seconds = time.process_time() - started
    statuses = [reply.status.value for reply in replies]
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    return Measured(candidate, shape, measurements.tokens, counts, seconds, beside)


def _row(candidate: Candidate, shape: Shape) -> tuple[dict[str, object], dict[str, object]]:
    """A request as `handler.batch.read` takes it."""
    one = candidate.text(shape.texts * shape.characters)
    texts = [one[begin : begin + shape.characters] for begin in range(0, len(one), shape.characters)]
    headers: dict[str, object] = {"content-type": "application/json"}
    if shape.kind is batch.Kind.EXPLAIN:
        headers["explain"] = "True"
    return {"body": json.dumps(texts).encode()}, headers


def worst_requests(
    classifier: TextClassifier, limits: Limits, texts: Sequence[Candidate], seed: int, going_on: Iterator[object]
) -> list[Measured]:
    """The requests that took longest, the worst first: first all shapes, then the worst of them changed."""
    generator = random.Random(seed)
    first = ((candidate, shape) for candidate in texts for shape in shapes(limits))
    found: list[Measured] = []
    for _ in going_on:
        try:
            candidate, shape = next(first)
        except StopIteration:
            one = found[min(generator.randrange(len(found)), generator.randrange(len(found)))]
            candidate, shape = one.candidate, changed_shape(generator, one.shape, limits)
        result = measured(classifier, limits, candidate, shape)
        if set(result.statuses) != {400}:  # a text that is blank
            found = sorted([*found, result], key=lambda one: -one.seconds)[:POOL]
    return found


def until(seconds: float) -> Iterator[float]:
    """Processor times until so many seconds of it have gone."""
    started = time.process_time()
    while (now := time.process_time() - started) < seconds:
        yield now


def report(texts: Sequence[tuple[float, Candidate]], characters: int, requests: Sequence[Measured]) -> str:
    """Tables of what was found."""
    lines = ["| text, repeated | µs a character |", "|---|---|"]
    lines += [f"| `{_cell(candidate)}` | {1e6 * seconds / characters:.2f} |" for seconds, candidate in texts]
    lines += [
        "",
        "| requests | of texts × characters | text, repeated | tokens | statuses | s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {_requests(one)} | {one.shape.texts} × {one.shape.characters} "
        f"| `{_cell(one.candidate)}` | {one.tokens:,} "
        f"| {', '.join(f'{number} × {status}' for status, number in one.statuses.items())} | {one.seconds:.2f} |"
        for one in requests
    ]
    return "\n".join(lines)


def _requests(one: Measured) -> str:
    total, kind, beside = sum(one.statuses.values()), one.shape.kind.value, one.beside
    if beside is None:
        return f"{total} {kind}"
    return f"1 {kind}, {total - 1} {beside.kind.value} ({beside.texts} × {beside.characters})"


def _cell(candidate: Candidate) -> str:
    return str(candidate).replace("|", "\\|").replace("`", "'")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worst_text", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="of processor time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--archive", type=Path, default=ARCHIVE, metavar="MAR", help="the model (default: %(default)s)")
    options = parser.parse_args()
    if not options.archive.is_file():
        print(f"error: {options.archive} is missing; `make archive` builds it.", file=sys.stderr)
        return 1
    limits = Limits.from_environment()
    with tempfile.TemporaryDirectory(prefix="worst-text-") as folder:
        shutil.unpack_archive(options.archive, folder, "zip")
        classifier = TextClassifier.load_archived(Path(folder) / MODEL_FOLDER, threads=1)
        classifier.warm_up()
        texts = worst_texts(
            tokenizer_seconds(classifier),
            limits.max_text_characters,
            options.seed,
            until(options.seconds * TEXTS_SHARE),
        )
        worst = [candidate for _, candidate in texts[: POOL // 3]]
        requests = worst_requests(classifier, limits, worst, options.seed, until(options.seconds * (1 - TEXTS_SHARE)))
        batches = [
            measured(classifier, limits, one.candidate, one.shape, MAX_REQUESTS) for one in requests[: POOL // 3]
        ]
        largest = Shape(limits.max_request_characters // limits.max_text_characters, limits.max_text_characters)
        batches += [
            measured(classifier, limits, one.candidate, one.shape, beside=largest) for one in requests[: POOL // 3]
        ]
    print(report(texts, limits.max_text_characters, [*requests, *batches]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
