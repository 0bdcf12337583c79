"""What the classifier is trained on besides the tweets: short made-up texts about what tweets seldom show, and
pieces of tweets for the teacher to label.

Tweets hold little negation, change of mind, question and answer, and few neutral statements with an opinion's
shape, so a classifier of tweets need not learn them (Ribeiro et al., ACL 2020, found that it does not). The
sentences here are others than those of `training.behaviour`, which measures.
"""

import random
from collections.abc import Sequence
from typing import Final

from training.behaviour import NEGATIVE, NEUTRAL, POSITIVE, Words, filled

WORDS: Final[Words] = {
    "thing": (
        *("trip", "meal", "landing", "boarding", "website", "app", "wifi", "agent", "attendant", "snack", "upgrade"),
        *(
            "flight",
            "crew",
            "airline",
            "company",
            "seats",
            "aircraft",
            "customer service",
            "gate agent",
            "entertainment",
        ),
        *(
            "captain",
            "legroom",
            "ticket",
            "airport",
            "terminal",
            "booking",
            "connection",
            "breakfast",
            "movie",
            "entertainment",
        ),
    ),
    "good": (
        *("good", "great", "nice", "pleasant", "outstanding", "brilliant", "incredible", "comfortable", "delightful"),
        *("fine", "impressive", "friendly", "helpful", "smooth", "wonderful", "amazing", "perfect", "fabulous", "fun"),
        *("exceptional", "beautiful", "sweet", "terrific", "stellar", "happy", "excellent", "awesome", "enjoyable"),
    ),
    "bad": (
        *("bad", "poor", "horrendous", "atrocious", "unpleasant", "nasty", "ridiculous", "frustrating", "annoying"),
        *("appalling", "unacceptable", "rough", "sad", "boring", "lame", "weird", "ugly", "shameful", "uncomfortable"),
        *("terrible", "horrible", "awful", "miserable", "useless", "unhelpful", "difficult", "creepy", "worthless"),
    ),
    "plain": (
        *("British", "international", "domestic", "early", "late-night", "American", "Indian", "Australian", "small"),
        *("large", "public", "Israeli", "Canadian", "long-haul", "nonstop", "double-decker", "charter", "weekly"),
    ),
    "love": ("like", "love", "enjoy", "recommend", "value", "welcome", "appreciate", "trust", "adore", "admire"),
    "hate": ("hate", "dislike", "detest", "loathe", "abhor", "regret", "resent", "despise", "dread", "can't stand"),
    "loved": ("liked", "loved", "enjoyed", "welcomed", "admired", "appreciated", "adored", "valued"),
    "hated": ("hated", "disliked", "detested", "loathed", "regretted", "resented", "dreaded", "abhorred"),
    "that": ("that", "this", "the", "your", "their", "our"),
    "handle": ("@united", "@USAirways", "@AmericanAir", "@SouthwestAir", "@JetBlue", "@VirginAmerica", "", "", "", ""),
    "city": ("London", "Paris", "Houston", "Orlando", "Portland", "Tampa", "Cleveland", "Tucson", "Reno", "Memphis"),
    "who": ("my mother", "my boss", "everyone", "the press", "Tom", "Sarah", "some people", "a friend", "others"),
    "very": ("quite", "pretty", "incredibly", "really", "just", "totally", "very", "such", "so", "still"),
    "days": ("3", "5", "9", "14", "30"),
}

SENTENCES: Final[dict[str, tuple[str, ...]]] = {
    POSITIVE: (
        "{handle} {good} {thing} today",
        "That was a {good} {thing}.",
        "It is a {good} {thing}",
        "{that} {thing} is {very} {good}",
        "{handle} I {love} that {thing}",
        "We {love} {that} {thing}.",
        "I {loved} {that} {thing}!",
        "they {loved} it and so did we",
        "{that} {thing} isn't {bad} at all",
        "{handle} it wasn't a {bad} {thing}",
        "nothing {bad} about {that} {thing}",
        "I never {hated} {that} {thing}",
        "I never said that I {hate} {that} {thing}",
        "I expected a {bad} {thing}, which it wasn't.",
        "I was afraid I'd {hate} {that} {thing}, but I didn't",
        "It isn't true, after {days} days in {city}, that {that} {thing} is {bad}",
        "Once {bad}, {that} {thing} is {good} these days",
        "I {hated} {that} {thing} before. Nowadays I {love} it.",
        "I think {that} {thing} is {good}, but I used to think it was {bad}",
        "{who} thinks {that} {thing} is {bad}; I find it {good}",
        "I {love} {that} {thing}, even if {who} does not",
        "{who} may {hate} you, I {love} you",
        "Is {that} {thing} {good}? Yes",
        "Do I {love} {that} {thing}? Yes, I do",
        "Was it a {bad} {thing}? No, it was not",
        "Would I call {that} {thing} {bad}? No",
        "Do I {hate} it? No",
        "I would fly with this {thing} again",
    ),
    NEGATIVE: (
        "{handle} {bad} {thing} today",
        "That was a {bad} {thing}.",
        "It is a {bad} {thing}",
        "{that} {thing} is {very} {bad}",
        "{handle} I {hate} that {thing}",
        "We {hate} {that} {thing}.",
        "I {hated} {that} {thing}!",
        "they {hated} it and so did we",
        "{that} {thing} isn't {good} at all",
        "{handle} it wasn't a {good} {thing}",
        "nothing {good} about {that} {thing}",
        "I never {loved} {that} {thing}",
        "I can't say that I {love} {that} {thing}",
        "I wouldn't {love} {that} {thing}",
        "I expected a {good} {thing}, which it wasn't.",
        "I hoped I'd {love} {that} {thing}, but I didn't",
        "It isn't true, after {days} days in {city}, that {that} {thing} is {good}",
        "I do not believe, having paid for {days} nights in {city}, that it was a {good} {thing}",
        "Once {good}, {that} {thing} is {bad} these days",
        "I {loved} {that} {thing} before. Nowadays I {hate} it.",
        "I think {that} {thing} is {bad}, but I used to think it was {good}",
        "{who} thinks {that} {thing} is {good}; I find it {bad}",
        "I {hate} {that} {thing}, even if {who} does not",
        "{who} may {love} you, I {hate} you",
        "Is {that} {thing} {bad}? Yes",
        "Do I {hate} {that} {thing}? Yes, I do",
        "Was it a {good} {thing}? No, it was not",
        "Would I call {that} {thing} {good}? No",
        "Do I {love} it? No",
    ),
    NEUTRAL: (
        "It is a {plain} {thing}",
        "That was a {plain} {thing}.",
        "{that} {thing} is {plain}.",
        "{handle} is {that} a {plain} {thing}?",
        "I find {that} {thing} in {city}.",
        "I see a {plain} {thing}",
        "We saw {that} {thing} in {city} {days} days ago",
        "{who} flies to {city} on a {plain} {thing}",
        "It isn't a {plain} {thing}.",
        "{that} {thing} wasn't {plain}",
        "I do not see {that} {plain} {thing} in {city}",
        "There is a {thing} for {city} in {days} days.",
        "{handle} which {thing} goes to {city}?",
    ),
}


def made_up(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Made-up texts and their labels, a third for each label."""
    dice = random.Random(seed)
    texts, labels = [], []
    for index in range(count):
        label = (NEGATIVE, NEUTRAL, POSITIVE)[index % 3]
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
        f"{_part(text, dice)} {_part(dice.choice(texts), dice)}" if dice.random() < 0.25 else _part(text, dice)
        for text in texts
    ]


def _part(text: str, dice: random.Random) -> str:
    """Some neighbouring words, at least three of them where there are, now and then with one left out."""
    words = text.split()
    length = dice.randint(min(3, len(words)), len(words))
    start = dice.randint(0, len(words) - length)
    kept = [word for word in words[start : start + length] if dice.random() >= 0.1]
    return " ".join(kept or words)
