"""Training texts that are not in the data: synthetic sentences with labels, and spans of the data's texts.

Tweets have few negations, changes of mind, questions with answers, and neutral statements in the form of an opinion. A
classifier of tweets therefore need not learn them (Ribeiro et al., ACL 2020, found that it does not), and synthetic
sentences teach them. A teacher labels the spans.

The sentences and the adjectives differ from those of the behavioural tests (`training.measure.behaviour`). Some
sentences are similar to tests that a classifier failed ("I wouldn't say we liked it" to "I can't say I liked the
seat"), and the words for groups of people are largely the same.
"""

import random
from collections.abc import Sequence
from typing import Final

from training.templates import LABELS, NEGATIVE, NEUTRAL, POSITIVE, Words, fill

JOINED: Final = 0.25
"""Share of the spans that a span of another text is appended to."""

DROPPED: Final = 0.1
"""Share of a span's words that are dropped."""

MISSPELT: Final = 0.05
"""Share of a span's words, of four letters or more, in which a letter is doubled, dropped or moved."""

WORDS: Final[Words] = {
    "thing": (
        *("trip", "meal", "landing", "boarding", "website", "app", "wifi", "agent", "attendant", "snack", "upgrade"),
        *("flight", "crew", "airline", "company", "seats", "aircraft", "customer service", "gate agent", "captain"),
        *("legroom", "ticket", "airport", "terminal", "booking", "connection", "breakfast", "movie", "baggage desk"),
        *("plane", "pilot", "staff", "cabin crew", "service", "seat", "food", "aeroplane", "counter", "refund"),
    ),
    "good": (
        *("good", "nice", "fine", "pleasant", "outstanding", "impressive", "friendly", "helpful", "smooth", "charming"),
        *("comfortable", "delightful", "fabulous", "terrific", "stellar", "enjoyable", "superior", "brilliant"),
        *("first-class", "top-notch", "efficient", "remarkable", "splendid", "reliable", "decent", "cool", "kind"),
        *("beautiful", "extraordinary", "exceptional", "incredible", "sweet", "fun", "exciting", "adorable", "happy"),
        *("special", "easy", "quick", "clean", "polite", "professional", "generous", "tasty"),
        *("marvellous", "flawless", "refreshing", "welcoming", "satisfying", "magnificent", "spotless", "punctual"),
    ),
    "bad": (
        *("bad", "poor", "horrendous", "atrocious", "unacceptable", "appalling", "miserable", "useless", "unhelpful"),
        *("shameful", "shoddy", "dismal", "disastrous", "infuriating", "incompetent", "dirty", "chaotic", "sloppy"),
        *("unfriendly", "frustrating", "uncomfortable", "inexcusable", "ugly", "nasty", "annoying", "boring", "rude"),
        *("ridiculous", "unpleasant", "lame", "weird", "rough", "difficult", "sad", "hard", "creepy", "abysmal"),
        *("unhappy", "average", "broken", "slow", "cheap", "filthy", "clueless", "painful"),
        *("stressful", "smelly", "insulting", "disorganized", "unprofessional", "overpriced", "mediocre", "stale"),
    ),
    "plain": (
        *("Scottish", "Swedish", "Kenyan", "Portuguese", "Thai", "Dutch", "Canadian", "domestic", "early", "small"),
        *("late-night", "large", "long-haul", "nonstop", "double-decker", "charter", "weekly", "weekend", "seasonal"),
        *("transatlantic", "two-hour", "northbound", "international", "foreign", "American", "British", "Australian"),
        *("Israeli", "Indian", "French", "Brazilian", "public", "red", "blue", "local", "yearly", "overnight", "cargo"),
        *(
            "Japanese",
            "Polish",
            "Greek",
            "Swiss",
            "Irish",
            "military",
            "chartered",
            "electric",
            "grey",
            "green",
            "daily",
        ),
    ),
    "love": (
        *("love", "like", "value", "prefer", "trust", "treasure", "respect", "praise", "cherish", "enjoy", "admire"),
        *("welcome", "recommend", "appreciate"),
    ),
    "hate": (
        "hate",
        "resent",
        "detest",
        "loathe",
        "deplore",
        "abhor",
        "dislike",
        "despise",
        "dread",
        "avoid",
        "regret",
    ),
    "loved": (
        *("loved", "liked", "valued", "preferred", "trusted", "treasured", "praised", "enjoyed", "admired"),
        *("welcomed", "appreciated"),
    ),
    "hated": (
        "hated",
        "resented",
        "detested",
        "loathed",
        "deplored",
        "abhorred",
        "disliked",
        "despised",
        "dreaded",
        "regretted",
    ),
    "saw": ("saw", "found", "took", "booked", "noticed", "passed", "watched"),
    "that": ("that", "this", "the", "your", "their", "our"),
    "is": ("is", "is", "has been", "seems", "will be", "looks", "remains"),
    "is_not": ("isn't", "is not", "has not been", "hasn't been", "ain't", "won't be", "is never"),
    "was_not": ("wasn't", "was not", "isn't", "is not"),
    "do_not": ("don't", "do not", "didn't", "did not", "can't", "wouldn't", "would never", "could not", "won't"),
    "I": ("I", "we", "I", "we", "we all", "my family and I"),
    "handle": ("@united", "@USAirways", "@AmericanAir", "@SouthwestAir", "@JetBlue", "@VirginAmerica", "", "", "", ""),
    "city": (
        *("London", "Paris", "Houston", "Orlando", "Portland", "Tampa", "Cleveland", "Tucson", "Reno", "Memphis"),
        # Cities that are not in the vocabulary, which stand for all unknown words.
        *("Yellowknife", "Ouagadougou", "Montevideo", "Reykjavik"),
    ),
    "who": (
        *("my mother", "my boss", "everyone", "the press", "Tom", "Sarah", "my neighbour", "a friend", "the guide"),
        *("people", "my parents", "others", "the reviews", "my husband", "the man next to me", "Noah", "Leila"),
    ),
    "group": (
        *("black", "white", "Asian", "Hispanic", "Latino", "Arab", "Christian", "Muslim", "Jewish", "Hindu", "Sikh"),
        *("Buddhist", "atheist", "American", "Mexican", "Chinese", "Nigerian", "German", "Iranian", "Russian", "gay"),
        *("straight", "lesbian", "bisexual", "heterosexual", "queer", "asexual", "transgender", "French", "Turkish"),
        *("homosexual", "trans", "pansexual", "nonbinary", "Spanish", "Korean", "Egyptian", "Catholic", "Mormon"),
    ),
    "person": ("man", "woman", "couple", "passenger", "agent", "pilot", "family", "mechanic", "student", "steward"),
    "very": (
        *("quite", "pretty", "incredibly", "just", "totally", "simply", "still", "utterly", "rather", "super"),
        *("remarkably", "exceptionally", "especially", "particularly", "thoroughly", "unbelievably", "insanely"),
        *("genuinely", "seriously", "highly", "awfully", "terribly", "completely", "amazingly", "unusually"),
    ),
    "days": ("3", "5", "9", "14", "30"),
    "aside": (
        *("having paid for {days} nights in {city}", "after {days} days in {city}", "all things considered"),
        *("with everything that {who} told me about {city}", "since {I} moved to {city} {days} years ago"),
        *("seeing how often {I} fly to {city}", "looking back at the last {days} months", "to answer {who}"),
        *("no matter what {who} wrote about {city}", "now that {I} have had it for {days} days", "though {who} asked"),
        *("after all the hours {I} spent in {city}", "with {days} trips to {city} behind me", "since you ask"),
        *("as somebody who lives in {city}", "even if {who} paid for it in {city}", "when {I} think of {city}"),
    ),
}

OPINIONS: Final = ("good", "bad", "love", "hate", "loved", "hated")
"""Placeholders of `WORDS` whose words determine the label of a text."""

SENTENCES: Final[dict[str, tuple[str, ...]]] = {
    POSITIVE: (
        "{handle} {good} {thing} today",
        "{that} {thing} {is} {very} {good}",
        "{that} {thing} {is} {good}",
        "What a {good} {thing}",
        "{handle} my whole family {loved} your {thing}",
        "{I} {love} how {good} {that} {thing} is",
        "they {loved} it and so did we",
        "{I} {loved} {that} {thing} in {city}",
        "{that} {thing} {is_not} {bad} at all",
        "{that} {thing} {is_not} {bad}",
        "{handle} {that} {thing} {is_not} {very} {bad}",
        "it {was_not} a {bad} {thing}",
        "nothing {bad} about {that} {thing}",
        "not a {bad} {thing} in sight",
        "{I} {do_not} {hate} {that} {thing} at all",
        "{I} {do_not} {hate} your {thing}, {who}",
        "{I} never {hated} {that} {thing}",
        "there's no reason to {hate} {that} {thing}",
        "{handle} it would be wrong to call {that} {thing} {bad}",
        "nobody said {that} {thing} {is} {bad}",
        "I was told of {bad} {thing}, which it wasn't.",
        "{I} expected {bad} {thing} but no, it wasn't that",
        "{I} feared {that} {thing} would turn out {bad}. It didn't.",
        "I was afraid to {hate} it and I didn't",
        "{who} said I'd {hate} {that} {thing}, but I {do_not}",
        "It is false, {aside}, to call {that} {thing} {bad}",
        "{I} would not say, {aside}, that {that} {thing} {is} {bad}",
        "Once {bad}, {that} {thing} is {good} these days",
        "My opinion of {that} {thing} has changed: {bad} then, {good} now",
        "{I} {hated} it before. Nowadays {I} {love} it.",
        "{that} {thing} was once {bad} but this year it {is} {good}",
        "years ago {I} {hated} {that} {thing}, today {I} {love} it",
        "{who} finds {that} {thing} {bad}; to me it is {good}",
        "{who} and {who} {hated} your {thing}. {I} {loved} it",
        "{I} {love} {that} {thing}, even if {who} does not",
        "{who} told me {that} {thing} {is} {bad}, but {I} find it {good}",
        "Is {that} {thing} {good}? Oh yes",
        "Am I someone who would {love} it? I am, yes",
        "Was your {thing} {bad}? No, not ours",
        "Would {I} call {that} {thing} {bad}? No",
        "Is it {bad}, {that} {thing}? No.",
        "Should I {hate} it? No",
        "Next time I fly with this {thing} again",
        "the {group} {person} {is} {good}",
        "that's not a {bad} {thing}",
        "it's no {bad} {thing}",
        "{I} can't claim, {aside}, that {that} {thing} {is} {bad}",
        "{I} couldn't call it, {aside}, a {bad} {thing}",
        "{who} says {that} {thing} {is} {bad}. {I} say it {is} {good}",
        "People complain that {that} {thing} is {bad}. {I} find it {good}.",
        "Did {who} {hate} {that} {thing}? No",
        "Do {I} find {that} {thing} {bad}? No",
        "Would {who} say that it {is} {bad}? No, never",
        "{I} don't believe, {aside}, that {that} {thing} {is} {bad}",
        "You won't hear me say, {aside}, that {I} {hate} {that} {thing}",
        "{I} doubt, {aside}, that anyone would call {that} {thing} {bad}",
        "Never would {I} claim, {aside}, that it is a {bad} {thing}",
        "Nobody can tell me, {aside}, that {that} {thing} was {bad}",
        "It's a lie, {aside}, that {I} {hated} {that} {thing}",
        "{that} {thing} {is} by no means {bad}",
        "{that} {thing} {is} far from {bad}, {handle}",
        "{that} {thing}? Anything but {bad}",
        "there's hardly a {bad} {thing} with this airline",
        "{that} {thing} was never {bad} {aside}",
        "{that} {thing} went from {bad} to {good}",
        "There was a time when {I} found {that} {thing} {bad}, but that is over: {good}",
        "{I} took it for {bad}, yet it turns out {good}",
        "{I} wouldn't say {I} {hated} {that} {thing}",
        "{I} could not say that we {hated} your {thing}",
        "{who} can't claim to {hate} {that} {thing}",
        "{I} can't honestly call {that} {thing} {bad}",
        "{handle} {I} don't think {I} {hated} it",
        "can't say that {that} {thing} {is} {bad}, {who}",
        "an ever so {good} {thing}, {who} {loved} it",
        "{I} {love} {that} {thing} now, though {I} once {hated} it",
        "{I} {love} this company today, even if in former years {I} {hated} it",
        "back then {I} would {hate} {that} {thing}, at present {I} {love} it",
        "until last month {I} {hated} this company. Since then {I} {love} it",
        "{that} {thing} is {good} today, however {bad} it was before",
        "{that} {thing} is {good} lately, but a year ago it was {bad}",
        "{I} no longer {hate} {that} {thing}: {I} {love} it",
        "{good} as it is today, {that} {thing} was {bad} once",
        "{that} {thing} used to be {bad}; nowadays it's {good}",
        "{I} used to call {that} {thing} {bad}, and today {I} call it {good}",
        "{I} {love} {that} {thing}, which {I} used to {hate}",
        "{handle} you used to have {bad} {thing}. You have {good} {thing} now",
        "formerly {bad}, and at last a {good} {thing}",
        "{who} may call {that} {thing} {bad}, in my eyes it {is} {good}",
        "According to {who} it {is} {bad}. According to me it {is} {good}",
        "{I} {love} your {thing}, whatever {who} says about it",
        "Everyone around me {hated} {that} {thing}, not me: {I} {loved} it",
        "In the opinion of {who} you are {bad}, in mine you are {good}",
        "{who} thinks you are {bad}, while {I} find you {good}",
        "{handle} to {who} you are {bad}, to me you are {good}",
        "{who} and {who} {hate} you, but not me: {I} {love} you",
        "{who} heard you were {bad}. What {I} saw was {good}",
        "Did {I} find {that} {thing} {good}? Yes, {I} did",
        "Would {who} call it a {good} {thing}? Yes",
        "Was it a {very} {good} {thing}? Yes it was",
        "We had a {very} {good} {thing}",
        "{handle} {very} {good} {thing} this time",
        "it was a {very} {good} {thing}",
        "{that} {thing} was {very} {good}, {who} says",
        "the {group} {person} {loved} {that} {good} {thing}",
        "a {good} {thing} for a {group} {person}",
    ),
    NEGATIVE: (
        "{handle} {bad} {thing} today",
        "{that} {thing} {is} {very} {bad}",
        "{that} {thing} {is} {bad}",
        "What {bad} {thing}",
        "{handle} my whole family {hated} your {thing}",
        "{I} {hate} how {bad} {that} {thing} is",
        "they {hated} it and so did we",
        "{I} {hated} {that} {thing} in {city}",
        "{that} {thing} {is_not} {good} at all",
        "{that} {thing} {is_not} {good}",
        "{handle} {that} {thing} {is_not} {very} {good}",
        "it {was_not} a {good} {thing}",
        "nothing {good} about {that} {thing}",
        "not a {good} {thing} in sight",
        "{I} {do_not} {love} {that} {thing} at all",
        "{I} {do_not} {love} your {thing}, {who}",
        "{I} never {loved} {that} {thing}",
        "there's no reason to {love} {that} {thing}",
        "{handle} it would be wrong to call {that} {thing} {good}",
        "nobody said {that} {thing} {is} {good}",
        "Who would {love} {that} {thing}? Not us",
        "I was promised a {good} {thing}, which it wasn't.",
        "{I} expected {good} {thing} but no, it wasn't that",
        "{I} hoped {that} {thing} would turn out {good}. It didn't.",
        "I was hoping to {love} it and I didn't",
        "{who} said I'd {love} {that} {thing}, but I {do_not}",
        "It is false, {aside}, to call {that} {thing} {good}",
        "{I} would not say, {aside}, that {that} {thing} {is} {good}",
        "{I} do not feel, {aside}, that it was {good}",
        "Once {good}, {that} {thing} is {bad} these days",
        "My opinion of {that} {thing} has changed: {good} then, {bad} now",
        "{I} {loved} it before. Nowadays {I} {hate} it.",
        "{that} {thing} was once {good} but this year it {is} {bad}",
        "years ago {I} {loved} {that} {thing}, today {I} {hate} it",
        "{who} finds {that} {thing} {good}; to me it is {bad}",
        "{who} and {who} {loved} your {thing}. {I} {hated} it",
        "{I} {hate} {that} {thing}, even if {who} does not",
        "{who} told me {that} {thing} {is} {good}, but {I} find it {bad}",
        "Is {that} {thing} {bad}? Oh yes",
        "Am I someone who would {hate} it? I am, yes",
        "Was your {thing} {good}? No, not ours",
        "Would {I} call {that} {thing} {good}? No",
        "Is it {good}, {that} {thing}? No.",
        "Should I {love} it? No",
        "Last time I fly with this {thing}",
        "the {group} {person} {is} {bad}",
        "that's not a {good} {thing}",
        "it's no {good} {thing}",
        "{I} can't claim, {aside}, that {that} {thing} {is} {good}",
        "{I} couldn't call it, {aside}, a {good} {thing}",
        "{who} says {that} {thing} {is} {good}. {I} say it {is} {bad}",
        "People rave that {that} {thing} is {good}. {I} find it {bad}.",
        "Did {who} {love} {that} {thing}? No",
        "Do {I} find {that} {thing} {good}? No",
        "Would {who} say that it {is} {good}? No, never",
        "{I} don't believe, {aside}, that {that} {thing} {is} {good}",
        "You won't hear me say, {aside}, that {I} {love} {that} {thing}",
        "{I} doubt, {aside}, that anyone would call {that} {thing} {good}",
        "Never would {I} claim, {aside}, that it is a {good} {thing}",
        "Nobody can tell me, {aside}, that {that} {thing} was {good}",
        "It's a lie, {aside}, that {I} {loved} {that} {thing}",
        "{that} {thing} {is} by no means {good}",
        "{that} {thing} {is} far from {good}, {handle}",
        "{that} {thing}? Anything but {good}",
        "there's hardly a {good} {thing} with this airline",
        "{that} {thing} was never {good} {aside}",
        "{that} {thing} went from {good} to {bad}",
        "There was a time when {I} found {that} {thing} {good}, but that is over: {bad}",
        "{I} took it for {good}, yet it turns out {bad}",
        "{I} wouldn't say {I} {loved} {that} {thing}",
        "{I} could not say that we {loved} your {thing}",
        "{who} can't claim to {love} {that} {thing}",
        "{I} can't honestly call {that} {thing} {good}",
        "{handle} {I} don't think {I} {loved} it",
        "can't say that {that} {thing} {is} {good}, {who}",
        "an ever so {bad} {thing}, {who} {hated} it",
        "{I} {hate} {that} {thing} now, though {I} once {loved} it",
        "{I} {hate} this company today, even if in former years {I} {loved} it",
        "back then {I} would {love} {that} {thing}, at present {I} {hate} it",
        "until last month {I} {loved} this company. Since then {I} {hate} it",
        "{that} {thing} is {bad} today, however {good} it was before",
        "{that} {thing} is {bad} lately, but a year ago it was {good}",
        "{I} no longer {love} {that} {thing}: {I} {hate} it",
        "{bad} as it is today, {that} {thing} was {good} once",
        "{that} {thing} used to be {good}; nowadays it's {bad}",
        "{I} used to call {that} {thing} {good}, and today {I} call it {bad}",
        "{I} {hate} {that} {thing}, which {I} used to {love}",
        "{handle} you used to have {good} {thing}. You have {bad} {thing} now",
        "formerly {good}, and at last a {bad} {thing}",
        "{who} may call {that} {thing} {good}, in my eyes it {is} {bad}",
        "According to {who} it {is} {good}. According to me it {is} {bad}",
        "{I} {hate} your {thing}, whatever {who} says about it",
        "Everyone around me {loved} {that} {thing}, not me: {I} {hated} it",
        "In the opinion of {who} you are {good}, in mine you are {bad}",
        "{who} thinks you are {good}, while {I} find you {bad}",
        "{handle} to {who} you are {good}, to me you are {bad}",
        "{who} and {who} {love} you, but not me: {I} {hate} you",
        "{who} heard you were {good}. What {I} saw was {bad}",
        "Did {I} find {that} {thing} {bad}? Yes, {I} did",
        "Would {who} call it a {bad} {thing}? Yes",
        "Was it a {very} {bad} {thing}? Yes it was",
        "We had a {very} {bad} {thing}",
        "{handle} {very} {bad} {thing} this time",
        "it was a {very} {bad} {thing}",
        "{that} {thing} was {very} {bad}, {who} says",
        "the {group} {person} {hated} {that} {bad} {thing}",
        "a {bad} {thing} for a {group} {person}",
    ),
    NEUTRAL: (
        "On Monday there was a {plain} {thing}",
        "{that} {thing} {is} {plain}.",
        "{handle} is there a {plain} {thing}?",
        "{who} looks for {that} {thing} in {city}.",
        "{I} {saw} a {plain} {thing}",
        "{I} {saw} {that} {thing} in {city} {days} days ago",
        "{who} flies to {city} on a {plain} {thing}",
        "{that} {thing} {is_not} {plain}",
        "it {was_not} a {plain} {thing}",
        "{I} {do_not} fly to {city} on a {plain} {thing}",
        "{who} does not need {that} {plain} {thing} in {city}",
        "{handle} the {thing} for {city} isn't at gate {days}",
        "There is a {thing} for {city} in {days} days.",
        "{handle} which {thing} goes to {city}?",
        "no {plain} {thing} from {city} this week",
        "Is {that} {thing} {plain}? No",
        "{I} would not say, {aside}, that {that} {thing} {is} {plain}",
        "{who} thought {that} {thing} was {plain}, but it wasn't.",
        "the {group} {person} {is} in {city}",
        "that's not a {plain} {thing}",
        "it's no {plain} {thing}",
        "{I} couldn't call it, {aside}, a {plain} {thing}",
        "we're not on a {plain} {thing}",
        "{I} don't believe, {aside}, that {that} {thing} {is} {plain}",
        "Nobody told me, {aside}, that it was a {plain} {thing}",
        "Never have {I} said, {aside}, that {that} {thing} {is} {plain}",
        "{handle} ours is not the {plain} {thing}",
        "that was no {plain} {thing}",
        "they do not have a {plain} {thing} in {city}",
        "{who} did not book a {plain} {thing}",
        "{that} {thing} to {city} isn't {plain}",
        "{that} {thing} does not stop in {city}",
        "it's not a {plain} {thing}, it's a {plain} one",
        "{who} isn't on the {plain} {thing} to {city}",
        "{who} married a {group} {person}",
        "{handle} {who} and {who} are {group}",
        "my {group} friend asks for {that} {plain} {thing}",
        "Is {that} {thing} {plain}? Yes",
        "Is it a {plain} {thing}? Yes, it is",
        "Was it a {plain} {thing}? It was, yes",
        "Do they have a {plain} {thing} in {city}? Yes, they do",
        "Did {who} book {that} {plain} {thing}? Yes",
        "Would {I} say {that} {thing} {is} {plain}? Yes",
        "Does {who} fly to {city} on a {plain} {thing}? Oh yes",
        "{handle} is there a {plain} {thing} to {city}? Yes there is",
        "Are there {plain} flights to {city}? Yes",
        "Are you on the {thing} to {city}? Yes, {who} and I",
        "Did {who} take a {plain} {thing} to {city}? No",
        "Do they have a {plain} {thing} in {city}? No, they don't",
        "Can {who} find that {thing} in {city}? Yes",
        "{who} called it a {plain} {thing}. It isn't",
        "{that} one is no {plain} {thing}",
        "it isn't any {plain} {thing}",
        "ours was not a {plain} {thing}, {who} said",
        "{handle} this one isn't a {plain} {thing}, is it?",
        "we aren't looking for a {plain} {thing}",
        "{who} isn't a {plain} {person}",
        "{I} do not work on a {plain} {thing}",
        "{who} has never been on a {plain} {thing}",
        "there is no {plain} {thing} at the gate",
        "not a {plain} {thing}, but a {plain} one",
        "{who} says that {who} is {group}",
        "one of us is {group}",
        "{who} is also a {group} {person}",
        "{who} and a {group} {person} are on this {thing}",
        "you are a {group} {person}",
        "{who} works as a {group} {person} in {city}",
        "we are a {group} family with a {plain} {thing}",
        "{group} people fly on this {thing} to {city}",
        "{I} sat next to a {group} {person}",
        "A {group} {person} asked {who} about {that} {thing}",
        "{handle} how many {group} people work in {city}?",
        "{who}, who is {group}, has a {thing} in {days} days",
    ),
}


def synthetic_texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Make synthetic texts and their labels, a third of the texts for each label."""
    generator = random.Random(seed)
    texts, labels = [], []
    for index in range(count):
        label = LABELS[index % 3]
        sentence = fill(generator.choice(SENTENCES[label]), WORDS, generator)
        texts.append(fill(sentence, WORDS, generator).strip())  # the words of `aside` have placeholders, too
        labels.append(label)
    return texts, labels


def spans(texts: Sequence[str], seed: int) -> list[str]:
    """Draw a random span of each text; a span of another text is appended to a quarter of them.

    Distillation can use any text of the same kind, labelled or not, and profits from more texts (Tang et al.,
    "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", 2019, section 3.3).
    """
    generator = random.Random(seed)
    return [
        f"{_span(text, generator)} {_span(generator.choice(texts), generator)}"
        if generator.random() < JOINED
        else _span(text, generator)
        for text in texts
    ]


def _span(text: str, generator: random.Random) -> str:
    """Draw neighbouring words, at least three if the text has them; some words are dropped, some misspelt."""
    words = text.split()
    length = generator.randint(min(3, len(words)), len(words))
    start = generator.randint(0, len(words) - length)
    kept = [word for word in words[start : start + length] if generator.random() >= DROPPED]
    return " ".join(_misspelt(word, generator) if generator.random() < MISSPELT else word for word in kept or words)


def _misspelt(word: str, generator: random.Random) -> str:
    if not word.isalpha() or len(word) < 4:
        return word
    position = generator.randrange(len(word) - 1)
    letter, following = word[position], word[position + 1]
    misspelt = generator.choice((letter * 2 + following, following, following + letter))
    return word[:position] + misspelt + word[position + 2 :]
