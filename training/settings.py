"""Every number of a training run, in frozen dataclasses, one for each stage, and the presets.

A preset is chosen by `--preset`, single settings are changed by `--set STAGE.NAME=VALUE`, and what was used
is written into each stage's `record.json`.
"""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from training.errors import TrainingError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MINILM, MPNET = "all-MiniLM-L6-v2", "all-mpnet-base-v2"
"""The transformers that packages carry; see `training.stages.transformer`."""

WT103 = "wt103"
"""fastai's name for its language model of WikiText-103."""


@dataclass(frozen=True)
class GeneralSettings:
    """Stage 1, the general language model (ULMFiT, section 3.1), where it is trained here."""

    seed: int = 1
    embedding_size: int = 300
    hidden_size: int = 600
    layers: int = 2
    word_vectors: float = 0.1
    """The scale of the embeddings' start from the transformer's word vectors; 0: fastai's own random start."""

    min_frequency: int = 3
    max_vocabulary: int = 20_000
    epochs: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    drop_mult: float = 0.2
    batch_size: int = 32
    sequence_length: int = 48


@dataclass(frozen=True)
class LanguageModelSettings:
    """Stage 2, the language model on tweets (section 3.2): the embeddings first, then everything."""

    seed: int = 1
    min_frequency: int = 2
    max_vocabulary: int = 20_000
    frozen_epochs: int = 0
    frozen_learning_rate: float = 4e-3
    epochs: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    drop_mult: float = 0.5
    batch_size: int = 32
    sequence_length: int = 48


@dataclass(frozen=True)
class TeacherSettings:
    """A fine-tuning of the transformer whose answers the classifier learns from."""

    seed: int = 1
    epochs: int = 2
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    batch_size: int = 32
    max_pieces: int = 96
    """Word pieces of a text that the transformer reads. Tweets have 30."""


@dataclass(frozen=True)
class DistilSettings:
    """Between stages 2 and 3: the encoder learns to read as the teacher does."""

    seed: int = 1
    frozen_epochs: int = 0
    frozen_learning_rate: float = 5e-3
    epochs: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    drop_mult: float = 0.2
    label_weight: float = 0.5
    """The label's share in the target of a labelled text; the rest is the teacher's answer."""

    feature_weight: float = 1.0
    """Of the teacher's pooled output in the loss, beside its probabilities."""

    batch_size: int = 128


@dataclass(frozen=True)
class FrozenTeacherSettings:
    """A transformer that stays as it is, with logistic regression over its pooled output."""

    seed: int = 1
    max_pieces: int = 96
    """Word pieces of a text that the transformer reads."""


@dataclass(frozen=True)
class LabelledDistilSettings(DistilSettings):
    """A distillation from a teacher of the same labels, on the train split, pieces of its texts, and other texts."""

    pieces: int = 12
    """How many pieces of each text the teacher speaks for."""

    tfidf_weight: float = 0.0
    """The share of TF-IDF with logistic regression in the teachers' answers; the rest is the transformer's."""


@dataclass(frozen=True)
class ClassifierSettings:
    """Stage 3, the classifier (section 3.3): gradual unfreezing, one layer group more in each phase, and
    learning rates that fall from the head's to the embedding's, the head's divided by `decay_per_group` to the power
    of four. (ULMFiT has five groups and 2.6; a teacher's answers on many texts teach more, and spoil less.)"""

    seed: int = 2
    """Of three that were tried (`training/README.md`)."""

    frozen_epochs: int = 1
    frozen_learning_rate: float = 1e-2
    last_two_epochs: int = 0
    last_two_learning_rate: float = 5e-3
    last_three_epochs: int = 0
    last_three_learning_rate: float = 3e-3
    epochs: int = 3
    learning_rate: float = 2e-3
    decay_per_group: float = 1.3
    weight_decay: float = 0.05
    max_gradient_norm: float = 0.5
    """To which a longer gradient is cut; most are shorter. Without it, one training of six came off its way."""

    drop_mult: float = 0.3
    label_weight: float = 0.6
    """The label's share in a tweet's target; the rest is the teachers' answer."""

    tfidf_weight: float = 0.3
    """The share of TF-IDF with logistic regression in the teachers' answers; the rest is the transformer's."""

    label_smoothing: float = 0.1
    """The share that all labels have alike in a tweet's target, where there is no teacher."""

    use_confidence: int = 1
    """1: the label's share is multiplied by `airline_sentiment_confidence`, how far its annotators agreed."""

    pieces: int = 6
    """How many pieces of each tweet are trained on with it, if there is a teacher to label them."""

    made_up_texts: int = 15_000
    """How many texts of `training.stages.augmentation` are trained on with the tweets."""

    batch_size: int = 64


@dataclass(frozen=True)
class Settings:
    """A whole run. The defaults are the preset `default`: the embedded model's recipe."""

    general: GeneralSettings = field(default_factory=GeneralSettings)
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    general_teacher: TeacherSettings = field(default_factory=lambda: TeacherSettings(epochs=1, learning_rate=1e-4))
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    distil: DistilSettings = field(default_factory=DistilSettings)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    start: str = "model_store/general"
    """What `all` begins with where it is given nothing: an exported model's folder, or `WT103`."""

    general_transformer: str = MINILM
    """What the general teacher begins with, where no other is given."""

    transformer: str = MPNET
    """What the teacher of the tweets begins with, where no other is given."""


PRESETS: dict[str, Settings] = {
    "default": Settings(),
    "ulmfit": Settings(
        general=GeneralSettings(
            embedding_size=400,
            hidden_size=1152,
            layers=3,
            epochs=3,
            learning_rate=2e-3,
            batch_size=64,
            sequence_length=72,
        ),
        language_model=LanguageModelSettings(epochs=2),  # few tweets, so small batches
        distil=DistilSettings(epochs=3),
        classifier=ClassifierSettings(batch_size=128),
        start=WT103,
    ),
    "tiny": Settings(
        general=GeneralSettings(
            embedding_size=16, hidden_size=24, layers=2, min_frequency=1, batch_size=4, sequence_length=8
        ),
        language_model=LanguageModelSettings(
            min_frequency=1, frozen_epochs=1, epochs=2, batch_size=4, sequence_length=8
        ),
        general_teacher=TeacherSettings(epochs=1, batch_size=8),
        teacher=TeacherSettings(epochs=1, batch_size=8),
        distil=DistilSettings(batch_size=8),
        classifier=ClassifierSettings(epochs=2, last_two_epochs=1, last_three_epochs=1, batch_size=8, made_up_texts=12),
        transformer=MINILM,
    ),
}

PRESET_HELP = {
    "default": "300/600/2 (embedding, hidden, layers), for two cores",
    "ulmfit": "400/1152/3, the sizes of ULMFiT and of fastai's wt103, for a GPU",
    "tiny": "16/24/2, seconds, for tests",
}


AnySettings = TypeVar("AnySettings", bound="DataclassInstance")
"""A run's, or those of `training.fit.recipe`: a dataclass of each stage's."""

AT_LEAST_ONE = {
    "embedding_size",
    "hidden_size",
    "layers",
    "min_frequency",
    "max_vocabulary",
    "batch_size",
    "sequence_length",
    "decay_per_group",
}


def with_changes(settings: AnySettings, changes: list[str]) -> AnySettings:
    """Apply changes of the form `STAGE.NAME=VALUE`.

    Raises:
        TrainingError: an unknown name, or a value that is not of the setting's type, or less than it can be.
    """
    for change in changes:
        key, _, value = change.partition("=")
        stage_name, _, name = key.partition(".")
        stage: Any = getattr(settings, stage_name, None)
        types = {option.name: option.type for option in fields(stage)} if is_dataclass(stage) else {}
        if name not in types or not value:
            known = ", ".join(
                f"{part.name}.{option.name}"
                for part in fields(settings)
                if is_dataclass(of_stage := getattr(settings, part.name))
                for option in fields(of_stage)
            )
            raise TrainingError(f"--set {change}: expected STAGE.NAME=VALUE, STAGE.NAME one of {known}.")
        kind: Any = types[name]
        try:
            number = kind(value)
        except ValueError as error:
            raise TrainingError(f"--set {change}: {key} takes a value of type {kind.__name__}.") from error
        least = 1 if name in AT_LEAST_ONE else 0
        if not least <= number < float("inf"):
            raise TrainingError(f"--set {change}: {key} takes a number of at least {least}.")
        settings = replace(settings, **{stage_name: replace(stage, **{name: number})})
    return settings
