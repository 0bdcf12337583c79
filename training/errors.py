"""The error that users of the command line can correct, as opposed to a defect in the code."""


class TrainingError(Exception):
    """An invalid input or setting. The message says what was expected and how to correct it."""
