"""File names of the stages' products, which later stages and the export read from the stages' folders."""

from typing import Final

GENERAL_FILE: Final = "language_model.pth"
"""Weights of the general language model, with its decoder."""

ENCODER_FILE: Final = "encoder.pth"
"""Weights of an AWD-LSTM encoder."""

VOCABULARY_FILE: Final = "vocabulary.pkl"
"""Vocabulary of a language model or an encoder: a list of tokens, whose index is the token's id."""

TEACHER_FILE: Final = "teacher.pth"
"""Weights of a transformer, fine-tuned or frozen, with its linear head."""

GENERATED_FILE: Final = "generated.txt"
"""Texts that the generator has written, one on each line."""

LEARNER_FILE: Final = "learner.pkl"
"""fastai learner, as `Learner.export` writes it."""

PRODUCTS: Final = {
    "general": GENERAL_FILE,
    "language-model": ENCODER_FILE,
    "general-teacher": TEACHER_FILE,
    "distil": ENCODER_FILE,
    "teacher": TEACHER_FILE,
    "second-teacher": TEACHER_FILE,
    "generator": GENERATED_FILE,
    "classifier": LEARNER_FILE,
}
"""The product of each stage that later stages read, by the stage's name, in the order of the stages."""

TEACHERS: Final = ("teacher", "second-teacher")
"""Stages of the teachers of the classifier, in the order of their transformers in the settings."""

LABEL_STAGES: Final = ("teacher", "second-teacher", "generator", "classifier")
"""Stages that are trained on the labels of the data."""
