"""Search for the most expensive text for a worker: `python -m benchmarks.worst_text`.

An evolutionary search over fragments of text maximizes the tokenizer's processor time per character. The worst texts
then pass all steps of a worker, in requests of many shapes within the limits, and in batches of such requests. The seed
determines the first texts; the later ones depend on measured times, so the results vary slightly.
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
"""The batch size in `config.properties` (`batchSize`)."""

POOL: Final = 12
"""The number of candidates that the search keeps."""
MAX_FRAGMENTS: Final = 6
TEXTS_SHARE: Final = 0.6
"""The share of the time for the search of texts. The rest is for requests."""

NEW_CHARACTER: Final = "<new character>"
NEW_WORD: Final = "<new word>"
"""Fragments that stand for different characters each time, so that no word is repeated."""

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
    """A text that repeats some fragments in its first part and others in the rest."""

    head: tuple[str, ...]
    tail: tuple[str, ...]
    head_share: float

    def text(self, characters: int) -> str:
        """The text with the given length."""
        head = _repeated(self.head, round(characters * self.head_share))
        return head + _repeated(self.tail, characters - len(head))

    def __str__(self) -> str:
        parts = [(self.head, self.head_share), (self.tail, 1 - self.head_share)]
        return ", ".join(f"{share:.0%} {' '.join(map(ascii, part))}" for part, share in parts if share > 0)


@dataclass(frozen=True)
class Shape:
    """The size and the kind of a request."""

    texts: int
    """The number of texts."""
    characters: int
    """The number of characters of each text."""

    kind: batch.Kind = batch.Kind.PREDICT


@dataclass(frozen=True)
class Measured:
    """The measured processor time of a request or of a batch."""

    candidate: Candidate
    shape: Shape
    tokens: int
    """The number of tokens of the tokenized texts."""

    statuses: dict[int, int]
    """The number of replies with each status."""
    seconds: float
    beside: Shape | None = None
    """The shape of the other requests of the batch; None if all have the same shape."""


def _repeated(fragments: Sequence[str], characters: int) -> str:
    numbers = count()
    parts: list[str] = []
    length = 0
    while length < characters:
        for fragment in fragments:
            parts.append(_filled(fragment, next(numbers)))
            length += len(parts[-1])
    return "".join(parts)[:characters]


def _filled(fragment: str, number: int) -> str:
    if fragment == NEW_CHARACTER:
        return chr(0x20000 + number % 42_000)
    if fragment == NEW_WORD:
        return "".join(chr(ord("a") + number // 26**digit % 26) for digit in range(3))
    return fragment


def candidates(generator: random.Random, pool: Sequence[Candidate]) -> Candidate:
    """A new candidate: a random one, a mutation of one in the pool, or a crossover of two in the pool."""
    chance = generator.random()
    if not pool or chance < 0.15:
        return Candidate(_fragments(generator), _fragments(generator), generator.choice((0.25, 0.4, 0.5, 0.75, 1.0)))
    # The minimum prefers the first candidates, which are the better ones.
    parent = pool[min(generator.randrange(len(pool)), generator.randrange(len(pool)))]
    if chance < 0.3:
        return replace(parent, tail=generator.choice(pool).head)
    if chance < 0.4:
        return replace(parent, head_share=generator.choice((0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)))
    if chance < 0.8:
        return replace(parent, head=_changed(generator, parent.head))
    return replace(parent, tail=_changed(generator, parent.tail))


def _fragments(generator: random.Random) -> tuple[str, ...]:
    return tuple(generator.choices(FRAGMENTS, k=generator.randint(1, 4)))


def _changed(generator: random.Random, fragments: tuple[str, ...]) -> tuple[str, ...]:
    index = generator.randrange(len(fragments))
    match generator.choice(("replace", "insert", "remove", "double")):
        case "insert" if len(fragments) < MAX_FRAGMENTS:
            return (*fragments[:index], generator.choice(FRAGMENTS), *fragments[index:])
        case "remove" if len(fragments) > 1:
            return (*fragments[:index], *fragments[index + 1 :])
        case "double" if len(fragments) < MAX_FRAGMENTS:
            return (*fragments[: index + 1], *fragments[index:])
        case _:
            return (*fragments[:index], generator.choice(FRAGMENTS), *fragments[index + 1 :])


def worst_texts(
    cost: Callable[[str], float], characters: int, seed: int, steps: Iterator[object]
) -> list[tuple[float, Candidate]]:
    """Search for the candidates with the most expensive texts; returns cost and candidate, the worst first.

    Args:
        cost: the function to maximize.
        characters: the length of each text.
        seed: the seed of the random generator.
        steps: an iterator; the search makes one step for each of its items.
    """
    generator = random.Random(seed)
    pool: list[tuple[float, Candidate]] = []
    for _ in steps:
        known = [candidate for _, candidate in pool]
        candidate = candidates(generator, known)
        text = candidate.text(characters)
        if candidate in known or not text.strip():
            continue
        value = cost(text)
        if len(pool) == POOL and value > pool[-1][0]:
            value = min(value, cost(text))  # other programs can only add to the time
        pool = sorted([*pool, (value, candidate)], key=lambda entry: -entry[0])[:POOL]
    return pool


def tokenizer_seconds(classifier: TextClassifier) -> Callable[[str], float]:
    """A cost function: the processor time for tokenizing a text with an empty cache of words."""

    def cost(text: str) -> float:
        classifier.forget()
        started = time.process_time()
        classifier.ids(text)
        return time.process_time() - started

    return cost


def shapes(limits: Limits) -> list[Shape]:
    """The shapes of requests to try first, within the limits of characters and texts."""
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
    """A shape with slightly more, fewer, longer or shorter texts, within the limits."""
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
    """Process a batch of requests with all steps of a worker, and measure the processor time.

    Args:
        classifier: the classifier.
        limits: the handler's limits.
        candidate: the text of the requests.
        shape: the shape of the requests.
        requests: the number of these requests.
        beside: the shape of further requests that fill the batch; None for no further requests.
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
    """A request in the form that `handler.batch.read` accepts."""
    whole = candidate.text(shape.texts * shape.characters)
    texts = [whole[begin : begin + shape.characters] for begin in range(0, len(whole), shape.characters)]
    headers: dict[str, object] = {"content-type": "application/json"}
    if shape.kind is batch.Kind.EXPLAIN:
        headers["explain"] = "True"
    return {"body": json.dumps(texts).encode()}, headers


def worst_requests(
    classifier: TextClassifier, limits: Limits, texts: Sequence[Candidate], seed: int, steps: Iterator[object]
) -> list[Measured]:
    """Search for the most expensive requests; returns them with the worst first.

    All texts in all shapes come first, then changed shapes of the worst requests.
    """
    generator = random.Random(seed)
    first = ((candidate, shape) for candidate in texts for shape in shapes(limits))
    worst: list[Measured] = []
    for _ in steps:
        try:
            candidate, shape = next(first)
        except StopIteration:
            parent = worst[min(generator.randrange(len(worst)), generator.randrange(len(worst)))]
            candidate, shape = parent.candidate, changed_shape(generator, parent.shape, limits)
        result = measured(classifier, limits, candidate, shape)
        if set(result.statuses) != {400}:  # the texts are blank
            worst = sorted([*worst, result], key=lambda measurement: -measurement.seconds)[:POOL]
    return worst


def until(seconds: float) -> Iterator[float]:
    """Yield the processor time used so far, until it reaches `seconds`."""
    started = time.process_time()
    while (now := time.process_time() - started) < seconds:
        yield now


def report(texts: Sequence[tuple[float, Candidate]], characters: int, requests: Sequence[Measured]) -> str:
    """The results as tables in Markdown."""
    lines = ["| repeated text | µs per character |", "|---|---|"]
    lines += [f"| `{_cell(candidate)}` | {1e6 * seconds / characters:.2f} |" for seconds, candidate in texts]
    lines += [
        "",
        "| requests | texts × characters | repeated text | tokens | statuses | s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {_requests(result)} | {result.shape.texts} × {result.shape.characters} "
        f"| `{_cell(result.candidate)}` | {result.tokens:,} "
        f"| {', '.join(f'{number} × {status}' for status, number in result.statuses.items())} "
        f"| {result.seconds:.2f} |"
        for result in requests
    ]
    return "\n".join(lines)


def _requests(result: Measured) -> str:
    total, kind, beside = sum(result.statuses.values()), result.shape.kind.value, result.beside
    if beside is None:
        return f"{total} {kind}"
    return f"1 {kind}, {total - 1} {beside.kind.value} ({beside.texts} × {beside.characters})"


def _cell(candidate: Candidate) -> str:
    return str(candidate).replace("|", "\\|").replace("`", "'")


def main() -> int:
    """Run the search with the options of the command line and print the results; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worst_text",
        description="Search for the texts and requests that take a worker the most processor time.",
    )
    parser.add_argument(
        "--seconds", type=float, default=300, help="processor time of the search (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (default: %(default)s)")
    parser.add_argument(
        "--archive", type=Path, default=ARCHIVE, metavar="MAR", help="archive of the model (default: %(default)s)"
    )
    options = parser.parse_args()
    if not options.archive.is_file():
        print(f"error: {options.archive} is missing; build it with `make archive`.", file=sys.stderr)
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
            measured(classifier, limits, result.candidate, result.shape, MAX_REQUESTS)
            for result in requests[: POOL // 3]
        ]
        largest = Shape(limits.max_request_characters // limits.max_text_characters, limits.max_text_characters)
        batches += [
            measured(classifier, limits, result.candidate, result.shape, beside=largest)
            for result in requests[: POOL // 3]
        ]
    print(report(texts, limits.max_text_characters, [*requests, *batches]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
