"""The recipe of `fit`: settings by the number of labelled texts, and the expected training time."""

from dataclasses import dataclass, field, replace
from typing import Final

from training.settings import (
    MINILM,
    ClassifierSettings,
    FrozenTeacherSettings,
    GeneralSettings,
    LabelledDistilSettings,
    LanguageModelSettings,
    TeacherSettings,
)

FROZEN_TEACHER_BELOW, GRADUAL_UNFREEZING_BELOW = 1_000, 10_000
"""Numbers of texts in the train split below which a recipe has a frozen teacher, and gradual unfreezing."""

SPAN_TOKENS: Final = 1_000_000
"""Target for the number of tokens in all spans of the train split; each text has 1 to `MAX_SPANS` spans."""

MAX_SPANS: Final = 12
"""Maximum number of spans of a text."""

TOKENS_PER_WORD: Final = 1.3

MIN_WORD_PIECES, MAX_WORD_PIECES = 96, 256
"""Bounds of the number of word pieces of a text that the transformer reads, which is twice the mean of the texts."""

LSTM_TRAINING, TRANSFORMER_TRAINING, TRANSFORMER_INFERENCE, TFIDF_FIT = 6_500, 2_500, 8_000, 12_000
"""Tokens per second, measured on two cores with AVX-512.

Training of a 300/600/2 network; training and inference of all-MiniLM-L6-v2; one fit of TF-IDF with logistic regression
over two labels.
"""

OVERHEAD_S: Final = 60
"""Duration of imports, word vectors, export and parity tests."""


@dataclass(frozen=True)
class FitSettings:
    """All settings of a run of `fit`."""

    start: GeneralSettings = field(default_factory=lambda: GeneralSettings(min_frequency=1))
    """Sizes of an encoder that is initialized with word vectors (`--start own`)."""

    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    """Fine-tuning of a language model, if the start is one."""

    frozen_teacher: FrozenTeacherSettings = field(default_factory=FrozenTeacherSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    distil: LabelledDistilSettings = field(default_factory=LabelledDistilSettings)
    classifier: ClassifierSettings = field(default_factory=lambda: ClassifierSettings(made_up_texts=0))
    transformer: str = MINILM


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run, with their name and a description for the user."""

    name: str
    what: str
    fine_tunes_teacher: bool
    settings: FitSettings


def recipe_for(train_texts: int, words: int, tiny: bool = False) -> Recipe:
    """Choose the recipe for a train split.

    Args:
        train_texts: number of texts.
        words: number of words of all texts.
        tiny: for tests: return a recipe whose training takes seconds.
    """
    if tiny:
        return _tiny(train_texts)
    tokens = words * TOKENS_PER_WORD
    spans = max(1, min(MAX_SPANS, round(SPAN_TOKENS / max(1, tokens / 2))))
    word_pieces = max(MIN_WORD_PIECES, min(MAX_WORD_PIECES, round(2 * tokens / max(1, train_texts))))
    distil = LabelledDistilSettings(pieces=spans, batch_size=64)
    classifier = ClassifierSettings(made_up_texts=0, use_confidence=0, pieces=spans, tfidf_weight=0)
    base = FitSettings(
        distil=distil,
        classifier=classifier,
        frozen_teacher=FrozenTeacherSettings(max_pieces=word_pieces),
        teacher=TeacherSettings(max_pieces=word_pieces),
    )
    if train_texts < FROZEN_TEACHER_BELOW:
        return Recipe(
            "hundreds of texts",
            "a frozen transformer teaches; few epochs of the whole network",
            False,
            replace(
                base,
                language_model=LanguageModelSettings(frozen_epochs=1, epochs=2),
                distil=replace(distil, epochs=4),
                classifier=replace(classifier, frozen_epochs=2, epochs=2, learning_rate=1e-3),
            ),
        )
    if train_texts < GRADUAL_UNFREEZING_BELOW:
        return Recipe(
            "thousands of texts",
            "a fine-tuned transformer teaches; gradual unfreezing",
            True,
            replace(
                base,
                language_model=LanguageModelSettings(epochs=2),
                teacher=replace(base.teacher, epochs=3, learning_rate=5e-5),
                distil=replace(distil, epochs=3),
                classifier=replace(classifier, last_two_epochs=1, last_three_epochs=1, epochs=1),
            ),
        )
    return Recipe(
        "tens of thousands of texts",
        "the whole recipe: a fine-tuned transformer teaches; then the classifier in four epochs",
        True,
        replace(base, distil=replace(distil, epochs=2)),
    )


def _tiny(train_texts: int) -> Recipe:
    sizes = GeneralSettings(embedding_size=16, hidden_size=24, layers=2, min_frequency=1, max_vocabulary=500)
    settings = FitSettings(
        start=sizes,
        language_model=LanguageModelSettings(min_frequency=1, batch_size=4, sequence_length=8),
        teacher=TeacherSettings(epochs=1, batch_size=8),
        distil=LabelledDistilSettings(pieces=1, batch_size=8),
        classifier=ClassifierSettings(
            made_up_texts=0, use_confidence=0, pieces=1, tfidf_weight=0, epochs=1, batch_size=8
        ),
    )
    return Recipe("tiny", "for tests", train_texts >= FROZEN_TEACHER_BELOW, settings)


def expected_minutes(recipe: Recipe, train_texts: int, words: int, labels: int, parameters_ratio: float = 1.0) -> float:
    """Estimate the training time in minutes on two cores with AVX-512.

    Args:
        recipe: the recipe.
        train_texts: number of texts in the train split.
        words: number of words of these texts.
        labels: number of labels.
        parameters_ratio: number of recurrent weights of the network, divided by those of a 300/600/2 network.
    """
    settings = recipe.settings
    tokens = words * TOKENS_PER_WORD
    read_limit = train_texts * settings.teacher.max_pieces
    read = min(tokens, read_limit)
    span_tokens = tokens / 2 * settings.distil.pieces
    read_span_tokens = min(span_tokens, read_limit * settings.distil.pieces)
    classifier = settings.classifier
    head, body = classifier.frozen_epochs, classifier.last_two_epochs + classifier.last_three_epochs + classifier.epochs
    epochs = settings.distil.epochs + 0.5 * head + body
    seconds = OVERHEAD_S + epochs * (tokens + span_tokens) / LSTM_TRAINING * parameters_ratio
    seconds += 2 * (read + read_span_tokens) / TRANSFORMER_INFERENCE
    if recipe.fine_tunes_teacher:
        seconds += settings.teacher.epochs * read / TRANSFORMER_TRAINING
    # The baseline with and without class weights, and five fits for soft labels.
    seconds += 7 * tokens / TFIDF_FIT * max(1, labels / 3)
    return seconds / 60
