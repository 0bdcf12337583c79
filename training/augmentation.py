"""What the classifier is trained on besides the tweets: short made-up texts about what tweets seldom show, and
pieces of tweets for the teacher to label.

Tweets hold little negation, change of mind, question and answer, and few neutral statements with an opinion's
shape, so a classifier of tweets need not learn them (Ribeiro et al., ACL 2020, found that it does not). The
sentences and the adjectives here are others than those of `training.behaviour`, which measures.
"""

import random
from collections.abc import Sequence
from typing import Final

from training.behaviour import LABELS, NEGATIVE, NEUTRAL, POSITIVE, Words, filled

FOLLOWED: Final = 0.25
"""The share of pieces that a piece of another text follows."""

LEFT_OUT: Final = 0.1
"""The share of a piece's words that are left out."""

WORDS: Final[Words] = {
    "thing": (
        *("trip", "meal", "landing", "boarding", "website", "app", "wifi", "agent", "attendant", "snack", "upgrade"),
        *("flight", "crew", "airline", "company", "seats", "aircraft", "customer service", "gate agent", "captain"),
        *("legroom", "ticket", "airport", "terminal", "booking", "connection", "breakfast", "movie", "baggage desk"),
    ),
    "good": (
        *("good", "nice", "fine", "pleasant", "outstanding", "impressive", "friendly", "helpful", "smooth", "charming"),
        *("comfortable", "delightful", "fabulous", "terrific", "stellar", "enjoyable", "superior", "brilliant"),
        *("first-class", "top-notch", "efficient", "remarkable", "splendid", "reliable"),
    ),
    "bad": (
        *("bad", "poor", "horrendous", "atrocious", "unacceptable", "appalling", "miserable", "useless", "unhelpful"),
        *("shameful", "shoddy", "dismal", "disastrous", "infuriating", "incompetent", "dirty", "chaotic", "sloppy"),
        *("unfriendly", "frustrating", "uncomfortable", "inexcusable", "a mess", "a disgrace"),
    ),
    "plain": (
        *("Scottish", "Swedish", "Kenyan", "Portuguese", "Thai", "Dutch", "Canadian", "domestic", "early", "small"),
        *("late-night", "large", "long-haul", "nonstop", "double-decker", "charter", "weekly", "weekend", "seasonal"),
        *("transatlantic", "two-hour", "northbound"),
    ),
    "love": ("love", "like", "value", "prefer", "trust", "treasure", "respect", "praise", "cherish"),
    "hate": ("hate", "resent", "detest", "loathe", "deplore", "can't bear"),
    "loved": ("loved", "liked", "valued", "preferred", "trusted", "treasured", "praised"),
    "hated": ("hated", "resented", "detested", "loathed", "deplored", "couldn't bear"),
    "that": ("that", "this", "the", "your", "their", "our"),
    "handle": ("@united", "@USAirways", "@AmericanAir", "@SouthwestAir", "@JetBlue", "@VirginAmerica", "", "", "", ""),
    "city": ("London", "Paris", "Houston", "Orlando", "Portland", "Tampa", "Cleveland", "Tucson", "Reno", "Memphis"),
    "who": ("my mother", "my boss", "everyone", "the press", "Tom", "Sarah", "my neighbour", "a friend", "the guide"),
    "very": ("quite", "pretty", "incredibly", "just", "totally", "simply", "still", "utterly"),
    "days": ("3", "5", "9", "14", "30"),
}

SENTENCES: Final[dict[str, tuple[str, ...]]] = {
    POSITIVE: (
        "{handle} {good} {thing} today",
        "{that} {thing} is {very} {good}",
        "What a {good} {thing}",
        "{handle} my whole family {loved} your {thing}",
        "We {love} how {good} {that} {thing} is",
        "they {loved} it and so did we",
        "{that} {thing} isn't {bad} at all",
        "nothing {bad} about {that} {thing}",
        "we never {hated} {that} {thing}",
        "{handle} it would be wrong to call {that} {thing} {bad}",
        "I was told of {bad} {thing}, which it wasn't.",
        "I was afraid to {hate} it and I didn't",
        "It is false, after {days} days in {city}, to call {that} {thing} {bad}",
        "Once {bad}, {that} {thing} is {good} these days",
        "My opinion of {that} {thing} has changed: {bad} then, {good} now",
        "We {hated} it before. Nowadays we {love} it.",
        "{who} finds {that} {thing} {bad}; to me it is {good}",
        "We {love} {that} {thing}, even if {who} does not",
        "Is {that} {thing} {good}? Oh yes",
        "Am I someone who would {love} it? I am, yes",
        "Was your {thing} {bad}? No, not ours",
        "Would we call {that} {thing} {bad}? No",
        "Should I {hate} it? No",
        "Next time I fly with this {thing} again",
    ),
    NEGATIVE: (
        "{handle} {bad} {thing} today",
        "{that} {thing} is {very} {bad}",
        "What {bad} {thing}",
        "{handle} my whole family {hated} your {thing}",
        "We {hate} how {bad} {that} {thing} is",
        "they {hated} it and so did we",
        "{that} {thing} isn't {good} at all",
        "nothing {good} about {that} {thing}",
        "we never {loved} {that} {thing}",
        "{handle} it would be wrong to call {that} {thing} {good}",
        "Who would {love} {that} {thing}? Not us",
        "I was promised a {good} {thing}, which it wasn't.",
        "I was hoping to {love} it and I didn't",
        "It is false, after {days} days in {city}, to call {that} {thing} {good}",
        "We do not feel, having paid for {days} nights in {city}, that it was {good}",
        "Once {good}, {that} {thing} is {bad} these days",
        "My opinion of {that} {thing} has changed: {good} then, {bad} now",
        "We {loved} it before. Nowadays we {hate} it.",
        "{who} finds {that} {thing} {good}; to me it is {bad}",
        "We {hate} {that} {thing}, even if {who} does not",
        "Is {that} {thing} {bad}? Oh yes",
        "Am I someone who would {hate} it? I am, yes",
        "Was your {thing} {good}? No, not ours",
        "Would we call {that} {thing} {good}? No",
        "Should I {love} it? No",
        "Last time I fly with this {thing}",
    ),
    NEUTRAL: (
        "On Monday there was a {plain} {thing}",
        "{that} {thing} is {plain}.",
        "{handle} is there a {plain} {thing}?",
        "{who} looks for {that} {thing} in {city}.",
        "We passed a {plain} {thing}",
        "We noticed {that} {thing} in {city} {days} days ago",
        "{who} flies to {city} on a {plain} {thing}",
        "{that} {thing} wasn't {plain}",
        "{who} does not need {that} {plain} {thing} in {city}",
        "There is a {thing} for {city} in {days} days.",
        "{handle} which {thing} goes to {city}?",
        "no {plain} {thing} from {city} this week",
    ),
}


def made_up(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Made-up texts and their labels, a third for each label."""
    dice = random.Random(seed)
    texts, labels = [], []
    for index in range(count):
        label = LABELS[index % 3]
        texts.append(filled(dice.choice(SENTENCES[label]), WORDS, dice).strip())
        labels.append(label)
    return texts, labels


def pieces(texts: Sequence[str], seed: int) -> list[str]:
    """For each text a part of it, a quarter of them followed by a part of another text.

    Whoever learns from a teacher can use any text of the right kind, labelled or not, and learns more from more of
    them (Tang et al., "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", 2019, section 3.3).
    """
    dice = random.Random(seed)
    return [
        f"{_part(text, dice)} {_part(dice.choice(texts), dice)}" if dice.random() < FOLLOWED else _part(text, dice)
        for text in texts
    ]


def _part(text: str, dice: random.Random) -> str:
    """Some neighbouring words, at least three of them where there are, now and then with one left out."""
    words = text.split()
    length = dice.randint(min(3, len(words)), len(words))
    start = dice.randint(0, len(words) - length)
    kept = [word for word in words[start : start + length] if dice.random() >= LEFT_OUT]
    return " ".join(kept or words)
