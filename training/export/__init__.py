"""Export: from a fastai learner to an exported model, its card and its archive."""
