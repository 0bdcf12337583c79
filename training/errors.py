"""What a person at the command line can put right, as opposed to a defect in this code."""


class TrainingError(Exception):
    """A wrong input or setting. The message says what was expected and the way out."""
