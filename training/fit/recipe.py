"""The recipe of `fit` for a number of labelled texts, and how long it takes."""

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

HUNDREDS, THOUSANDS = 1_000, 10_000
"""Texts of the train split under which a recipe applies."""

PIECE_TOKENS: Final = 1_000_000
"""Tokens of all pieces of the train split's texts together, as far as `MOST_PIECES` and one piece a text allow."""
MOST_PIECES: Final = 12

TOKENS_PER_WORD: Final = 1.3
FEWEST_READ, MOST_READ = 96, 256
"""Word pieces of a text that the transformer reads: twice the mean of the texts, between these two."""

LSTM_TRAINED, TRANSFORMER_TRAINED, TRANSFORMER_READ, TFIDF_READ = 6_500, 2_500, 8_000, 12_000
"""Tokens in a second of two cores: 300/600/2 in training, all-MiniLM-L6-v2 in training and reading, and one fit of
TF-IDF with logistic regression over two labels. Measured on two cores with AVX-512."""
OVERHEAD_S: Final = 60
"""Imports, word vectors, export and its proofs."""


@dataclass(frozen=True)
class FitSettings:
    """Every number of a run of `fit`."""

    start: GeneralSettings = field(default_factory=lambda: GeneralSettings(min_frequency=1))
    """Sizes of an encoder that begins with words alone."""

    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    """Of a start that is a language model."""

    frozen_teacher: FrozenTeacherSettings = field(default_factory=FrozenTeacherSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    distil: LabelledDistilSettings = field(default_factory=LabelledDistilSettings)
    classifier: ClassifierSettings = field(default_factory=lambda: ClassifierSettings(made_up_texts=0))
    transformer: str = MINILM


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained."""

    name: str
    what: str
    fine_tunes_teacher: bool
    settings: FitSettings


def recipe_for(train_texts: int, words: int, tiny: bool = False) -> Recipe:
    """The recipe for a train split.

    Args:
        train_texts: how many texts it has.
        words: how many words they have together.
        tiny: for tests: a network and a training that take seconds.
    """
    if tiny:
        return _tiny(train_texts)
    tokens = words * TOKENS_PER_WORD
    pieces = max(1, min(MOST_PIECES, round(PIECE_TOKENS / max(1, tokens / 2))))
    read = max(FEWEST_READ, min(MOST_READ, round(2 * tokens / max(1, train_texts))))
    distil = LabelledDistilSettings(pieces=pieces, batch_size=64)
    classifier = ClassifierSettings(made_up_texts=0, use_confidence=0, pieces=pieces, tfidf_weight=0)
    base = FitSettings(
        distil=distil,
        classifier=classifier,
        frozen_teacher=FrozenTeacherSettings(max_pieces=read),
        teacher=TeacherSettings(max_pieces=read),
    )
    if train_texts < HUNDREDS:
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
    if train_texts < THOUSANDS:
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
    return Recipe("tiny", "for tests", train_texts >= HUNDREDS, settings)


def expected_minutes(recipe: Recipe, train_texts: int, words: int, labels: int, parameters_ratio: float = 1.0) -> float:
    """How long a recipe takes on two cores with AVX-512.

    Args:
        recipe: for a train split of `train_texts` texts of `words` words together.
        parameters_ratio: of the network's recurrent weights, to 300/600/2's.
    """
    settings = recipe.settings
    tokens = words * TOKENS_PER_WORD
    most_read = train_texts * settings.teacher.max_pieces
    read = min(tokens, most_read)
    of_pieces = tokens / 2 * settings.distil.pieces
    read_pieces = min(of_pieces, most_read * settings.distil.pieces)
    classifier = settings.classifier
    head, body = classifier.frozen_epochs, classifier.last_two_epochs + classifier.last_three_epochs + classifier.epochs
    epochs = settings.distil.epochs + 0.5 * head + body
    seconds = OVERHEAD_S + epochs * (tokens + of_pieces) / LSTM_TRAINED * parameters_ratio
    seconds += 2 * (read + read_pieces) / TRANSFORMER_READ
    if recipe.fine_tunes_teacher:
        seconds += settings.teacher.epochs * read / TRANSFORMER_TRAINED
    # The baseline with and without class weights, and five fits that teach.
    seconds += 7 * tokens / TFIDF_READ * max(1, labels / 3)
    return seconds / 60
