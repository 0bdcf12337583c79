"""Behavioural tests for classifiers with the labels negative, neutral and positive, of texts about airlines.

The method is CheckList (Ribeiro et al., "Beyond Accuracy: Behavioral Testing of NLP Models with CheckList", ACL 2020).
A case has one or two texts and a condition on their predictions. There are three kinds of tests:

- functionality: the predicted label of a text is one of the expected labels
- invariance: a change of the text that does not matter leaves the predicted label as it was
- direction: a change in favour of a label does not lower that label's probability by more than 0.1

Templates and words were written for this project. The synthetic training texts have other sentences
(`training.stages.augmentation`).
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, TypeVar

from training.templates import NEGATIVE, NEUTRAL, POSITIVE, Words, fill, fill_with

CASES_PER_TEST: Final = 150
TOLERANCE: Final = 0.1
"""Fall of a probability that a direction test allows."""

T = TypeVar("T")
Kind = Literal["functionality", "invariance", "direction"]
Scores = dict[str, float]
"""The probability of each label."""


@dataclass(frozen=True)
class Case:
    """The texts of a case and the expected labels."""

    texts: tuple[str, ...]
    """One text; for invariance and direction two: the text before and after the change."""

    labels: tuple[str, ...]
    """Functionality: the expected labels. Direction: the label that the change favours. Invariance: none."""


@dataclass(frozen=True)
class BehaviouralTest:
    """A test: cases of one kind."""

    capability: str
    name: str
    kind: Kind
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Result:
    """The result of a test."""

    capability: str
    name: str
    kind: Kind
    cases: int
    failures: int
    example: str
    """Texts of the first failed case; empty if no case failed."""

    @property
    def failure_rate(self) -> float:
        """Share of the cases that failed."""
        return self.failures / self.cases


WORDS: Final[Words] = {
    "noun": ("flight", "crew", "service", "food", "seat", "staff", "pilot", "plane", "lounge", "check-in", "cabin"),
    "good": ("great", "excellent", "wonderful", "amazing", "fantastic", "superb", "perfect", "lovely", "awesome"),
    "bad": ("terrible", "awful", "horrible", "disgusting", "pathetic", "dreadful", "lousy", "disappointing", "crappy"),
    "plain": ("Italian", "commercial", "morning", "new", "regional", "direct", "connecting", "private"),
    "love": ("love", "enjoy", "like", "appreciate", "admire", "adore"),
    "hate": ("hate", "dislike", "despise", "dread", "regret"),
    "loved": ("loved", "enjoyed", "liked", "appreciated"),
    "hated": ("hated", "disliked", "despised", "regretted"),
    "this": ("the", "this", "that"),
    "airline": ("@united", "@JetBlue", "@AmericanAir", "@SouthwestAir", "@USAirways", "@VirginAmerica"),
    "city": ("Boston", "Denver", "Chicago", "Dallas", "Phoenix", "Seattle", "Miami", "Atlanta", "Newark", "Austin"),
    "name": ("Maria", "David", "Emily", "Ahmed", "Wei", "Olga", "Carlos", "Aisha", "John", "Priya", "Kofi", "Hannah"),
    "number": ("4", "6", "7", "12", "15", "18"),
    "very": ("really", "very", "extremely", "absolutely", "truly", "so"),
}

_BASE: Final = (
    # Texts before the change, of invariance and direction tests: tweets with praise, complaints and questions.
    "{airline} thank you for getting {name} and me to {city} on time, you were wonderful",
    "{airline} the crew on my flight to {city} was excellent, please thank {name} for me!",
    "{airline} best flight to {city} in years. I had no complaints at all",
    "{airline} kudos to {name} at gate {number} in {city}, I am so happy with the help",
    "{airline} my flight from {city} was cancelled and nobody told us. I am very angry",
    "{airline} I have been on hold for {number} hours about my bag in {city}. This is ridiculous",
    "{airline} you lost our luggage in {city} and {name} did not care. Never again",
    "{airline} {number} hours late into {city} and we still do not have a gate. Terrible service",
    "{airline} does flight {number} to {city} have wifi?",
    "{airline} what time does check-in open in {city} for {name} and {number} others?",
    "{airline} how many bags can I take to {city} if I have {number} children with me?",
    "{airline} I am flying to {city} with {name} on the {number}th, can we sit together?",
)

_GROUPS: Final[Words] = {
    "race": ("black", "white", "Asian", "Hispanic", "Latino", "Arab", "African American", "mixed race"),
    "religion": ("Christian", "Muslim", "Jewish", "Hindu", "Buddhist", "Sikh", "atheist", "Catholic", "Mormon"),
    "nationality": ("American", "Mexican", "Chinese", "Nigerian", "German", "Iranian", "Indian", "Russian", "Turkish"),
    "orientation": ("gay", "straight", "lesbian", "bisexual", "heterosexual", "queer", "asexual", "transgender"),
}

_CONTRACTIONS: Final = {
    "did not": "didn't",
    "do not": "don't",
    "I am": "I'm",
    "I have": "I've",
}


def run(tests: Sequence[BehaviouralTest], scores_of: Callable[[list[str]], list[Scores]]) -> list[Result]:
    """Run tests.

    Args:
        tests: the tests.
        scores_of: function that returns the probability of each label for each of some texts.
    """
    results = []
    for test in tests:
        scores = iter(scores_of([text for case in test.cases for text in case.texts]))
        failed = [case for case in test.cases if not _holds(test.kind, case, [next(scores) for _ in case.texts])]
        example = " → ".join(failed[0].texts) if failed else ""
        results.append(Result(test.capability, test.name, test.kind, len(test.cases), len(failed), example))
    return results


def _holds(kind: Kind, case: Case, scores: Sequence[Scores]) -> bool:
    labels = [max(probabilities, key=probabilities.__getitem__) for probabilities in scores]
    if kind == "functionality":
        return labels[0] in case.labels
    if kind == "invariance":
        return labels[0] == labels[1]
    [label] = case.labels
    return scores[1][label] >= scores[0][label] - TOLERANCE


def suite() -> list[BehaviouralTest]:
    """Make all tests; they are the same on each call."""
    return [*_vocabulary(), *_negation(), *_time_and_opinion(), *_robustness(), *_entities(), *_fairness()]


def _vocabulary() -> Iterator[BehaviouralTest]:
    good = ("The {noun} was {good}.", "{airline} {good} {noun}", "I {love} {this} {noun}.", "We {loved} the {noun}")
    bad = ("The {noun} was {bad}.", "{airline} {bad} {noun}", "I {hate} {this} {noun}.", "We {hated} the {noun}")
    yield _expecting("vocabulary", "positive words in short sentences", good, POSITIVE)
    yield _expecting("vocabulary", "negative words in short sentences", bad, NEGATIVE)
    neutral = (
        "This is a {plain} {noun}.",
        "{airline} it is a {plain} flight to {city}",
        "The flight to {city} leaves from gate {number}.",
        "{name} has a {plain} flight on the {number}th.",
        "I saw the {noun}.",
    )
    yield _expecting("vocabulary", "neutral sentences", neutral, NEUTRAL)
    intensified: dict[str, tuple[str, ...]] = {
        POSITIVE: ("The {noun} was {good}.", "This is a {good} {noun}.", "{airline} {good} {noun}!"),
        NEGATIVE: ("The {noun} was {bad}.", "This is a {bad} {noun}.", "{airline} {bad} {noun}!"),
    }
    for label, sentences in intensified.items():
        changes = [(sentence, re.sub(r"(?=\{(good|bad)\})", "{very} ", sentence)) for sentence in sentences]
        yield _directed("vocabulary", f"intensifiers, {label}", changes, label)
    for label, ends in {
        POSITIVE: (" I {love} you.", " You are {good}.", " The {noun} is {good}!"),
        NEGATIVE: (" I {hate} you.", " You are {bad}.", " The {noun} is {bad}!"),
    }.items():
        cases = [Case((text, text + end), (label,)) for text, end in _pairs(_BASE, ends)]
        yield _test("vocabulary", f"an added {label} sentence", "direction", cases)


def _negation() -> Iterator[BehaviouralTest]:
    positive = (
        "The {noun} was not {good}.",
        "This is not a {good} {noun}.",
        "I don't {love} {this} {noun}.",
        "{airline} I can't say I {loved} the {noun}",
        "Nobody would call this {noun} {good}.",
    )
    yield _expecting("negation", "negated positive", positive, NEGATIVE)
    negative = ("The {noun} was not {bad}.", "This is not a {bad} {noun}.", "I don't {hate} {this} {noun}.")
    yield _expecting("negation", "negated negative", negative, NEUTRAL, POSITIVE)
    neutral = (
        "This is not a {plain} {noun}.",
        "The flight to {city} does not leave from gate {number}.",
        "{airline} my flight from {city} was not a {plain} flight",
        "{name} does not work for a {plain} airline.",
        "These are not {plain} flights.",
    )
    yield _expecting("negation", "negated neutral", neutral, NEUTRAL)
    end = (
        "I thought the {noun} would be {good}, but it was not.",
        "I thought I would {love} {this} {noun}, but I did not.",
    )
    yield _expecting("negation", "negation at the end, of positive", end, NEGATIVE)
    end = (
        "I thought the {noun} would be {bad}, but it wasn't.",
        "I thought I would {hate} {this} {noun}, but I did not.",
    )
    yield _expecting("negation", "negation at the end, of negative", end, NEUTRAL, POSITIVE)
    between = (
        "I don't think, given that I bought it {number} weeks ago, that the {noun} was {good}.",
        "I can't say, given all the time I've been flying to {city}, that this is a {good} {noun}.",
        "It is not true, whatever {name} says about {city}, that I {love} {this} {noun}.",
    )
    yield _expecting("negation", "negated positive, neutral words between", between, NEGATIVE)


def _time_and_opinion() -> Iterator[BehaviouralTest]:
    better = (
        "I used to {hate} this airline, but now I {love} it.",
        "In the past the {noun} was {bad}, now it is {good}.",
        "Last year I {hated} the {noun}, although this time I {loved} it.",
        "The {noun} is {good} at the moment, while it was {bad} in the past.",
        "I {love} {airline}, even though I used to {hate} them.",
        "I did {hate} the {noun} in the past. I don't any more, I {love} it.",
    )
    worse = (
        "I used to {love} this airline, but now I {hate} it.",
        "In the past the {noun} was {good}, now it is {bad}.",
        "Last year I {loved} the {noun}, although this time I {hated} it.",
        "The {noun} is {bad} at the moment, while it was {good} in the past.",
        "I {hate} {airline}, even though I used to {love} them.",
        "I did {love} the {noun} in the past. I don't any more, I {hate} it.",
    )
    yield _expecting("time", "it was bad and is good", better, POSITIVE)
    yield _expecting("time", "it was good and is bad", worse, NEGATIVE)
    mine = {
        POSITIVE: (
            "{name} {hated} the {noun}, but I {loved} it.",
            "Some say the {noun} is {bad}. I think it is {good}.",
            "I think you are {good}, but {name} thinks you are {bad}.",
            "{name} does not {love} the {noun}, but I do.",
        ),
        NEGATIVE: (
            "{name} {loved} the {noun}, but I {hated} it.",
            "Some say the {noun} is {good}. I think it is {bad}.",
            "I think you are {bad}, but {name} thinks you are {good}.",
            "{name} does not {hate} the {noun}, but I do.",
        ),
    }
    for label, opinions in mine.items():
        yield _expecting("opinion", f"the author's own counts: {label}", opinions, label)
    questions = {
        ("yes", POSITIVE): ("Do I think the {noun} was {good}? Yes", "Did we {love} {this} {noun}? Yes"),
        ("yes", NEGATIVE): ("Do I think the {noun} was {bad}? Yes", "Did we {hate} {this} {noun}? Yes"),
        ("no", NEGATIVE): ("Do I think the {noun} was {good}? No", "Did we {love} {this} {noun}? No"),
    }
    for (answer, label), sentences in questions.items():
        yield _expecting("question and answer", f"{answer}: {label}", sentences, label)
    sentences = ("Do I think the {noun} was {bad}? No", "Did we {hate} {this} {noun}? No")
    yield _expecting("question and answer", "no: not negative", sentences, NEUTRAL, POSITIVE)
    neutral = (
        "Do I think it was a {plain} {noun}?",
        "Did we see a {plain} {noun}?",
        "Does the flight to {city} leave from gate {number}?",
    )
    for answer in ("yes", "no"):
        answered = [f"{question} {answer.capitalize()}" for question in neutral]
        yield _expecting("question and answer", f"{answer}: neutral", answered, NEUTRAL)


def _robustness() -> Iterator[BehaviouralTest]:
    yield _changed("robustness", "a typo", _BASE, _typo)
    yield _changed("robustness", "two typos", _BASE, lambda text, generator: _typo(_typo(text, generator), generator))
    yield _changed("robustness", "an added handle or URL", _BASE, _with_noise)
    contractible = tuple(base for base in _BASE if any(long in base for long in _CONTRACTIONS))
    yield _changed("robustness", "contractions", contractible, _contracted)
    yield _changed("robustness", "lower case, no full stop", _BASE, lambda text, _: text.lower().rstrip(".!"))


def _entities() -> Iterator[BehaviouralTest]:
    for name, kind in {"names": "name", "places": "city", "numbers": "number", "airlines": "airline"}.items():
        bases = tuple(base for base in _BASE if "{" + kind + "}" in base)
        cases = []
        for base, generator in _draws(f"entities {name}", bases):
            words = {key: generator.choice(options) for key, options in WORDS.items()}
            replacement = generator.choice([word for word in WORDS[kind] if word != words[kind]])
            cases.append(Case((fill_with(base, words), fill_with(base, words | {kind: replacement})), ()))
        yield _test("entities", f"other {name}", "invariance", cases)


def _fairness() -> Iterator[BehaviouralTest]:
    frames = (
        "{airline} I am a {group} passenger flying to {city} tomorrow",
        "{airline} my {group} friend {name} has a question about the flight to {city}",
        "{airline} the {group} flight attendant helped us, thank you {name}!",
        "{airline} a {group} man and his bag were left behind in {city}, terrible service",
        "{name} is a {group} pilot.",
        "{name} and I are both {group}.",
        "The captain said that {name} is {group}.",
    )
    for kind, groups in _GROUPS.items():
        cases = []
        for frame, generator in _draws(f"fairness {kind}", frames):
            words = {key: generator.choice(options) for key, options in WORDS.items()}
            texts = [fill_with(frame, words | {"group": group}) for group in generator.sample(groups, 2)]
            cases.append(Case(tuple(texts), ()))
        yield _test("fairness", kind, "invariance", cases)


def _expecting(capability: str, name: str, templates: Sequence[str], *labels: str) -> BehaviouralTest:
    texts = [fill(template, WORDS, generator) for template, generator in _draws(f"{capability} {name}", templates)]
    return _test(capability, name, "functionality", [Case((text,), labels) for text in texts])


def _directed(capability: str, name: str, changes: Sequence[tuple[str, str]], label: str) -> BehaviouralTest:
    cases = []
    for (before, after), generator in _draws(f"{capability} {name}", changes):
        words = {key: generator.choice(options) for key, options in WORDS.items()}
        cases.append(Case((fill_with(before, words), fill_with(after, words)), (label,)))
    return _test(capability, name, "direction", cases)


def _changed(
    capability: str, name: str, templates: Sequence[str], change: Callable[[str, random.Random], str]
) -> BehaviouralTest:
    cases = []
    for template, generator in _draws(f"{capability} {name}", templates):
        text = fill(template, WORDS, generator)
        changed = change(text, generator)
        if changed != text:  # a second typo can undo the first
            cases.append(Case((text, changed), ()))
    return _test(capability, name, "invariance", cases)


def _test(capability: str, name: str, kind: Kind, cases: Sequence[Case]) -> BehaviouralTest:
    return BehaviouralTest(capability, name, kind, tuple(dict.fromkeys(cases)))


def _pairs(templates: Sequence[str], ends: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    combinations = list(product(templates, ends))
    for (template, end), generator in _draws(f"pairs {ends[0]}", combinations):
        pairs.append((fill(template, WORDS, generator), fill(end, WORDS, generator)))
    return pairs


def _draws(seed: str, options: Sequence[T]) -> Iterator[tuple[T, random.Random]]:
    """Yield the options in turn, `CASES_PER_TEST` in all, with a random number generator of the given seed."""
    generator = random.Random(seed)
    for index in range(CASES_PER_TEST):
        yield options[index % len(options)], generator


def _typo(text: str, generator: random.Random) -> str:
    """Swap two neighbouring letters of a random word that is not a handle."""
    positions = [
        index
        for word in re.finditer(r"(?<!@)\b[A-Za-z]{4,}\b", text)
        for index in range(word.start(), word.end() - 1)
        if text[index] != text[index + 1]
    ]
    position = generator.choice(positions)
    return text[:position] + text[position + 1] + text[position] + text[position + 2 :]


def _with_noise(text: str, generator: random.Random) -> str:
    letters = "".join(generator.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789", k=8))
    noise = generator.choice((f"@{letters}", f"http://t.co/{letters}", f"https://t.co/{letters}"))
    return f"{text} {noise}" if generator.random() < 0.5 else f"{noise} {text}"


def _contracted(text: str, _generator: random.Random) -> str:
    for long, short in _CONTRACTIONS.items():
        text = text.replace(long, short)
    return text


def to_table(results: Sequence[Result]) -> list[str]:
    """Format results as the lines of a Markdown table."""
    lines = ["| capability | test | kind | cases | failures |", "|---|---|---|---|---|"]
    lines += [
        f"| {result.capability} | {result.name} | {result.kind} | {result.cases} | {result.failure_rate:.1%} |"
        for result in results
    ]
    return lines
