"""Evaluation: figures, behavioural tests and reference distributions. Needs neither fastai nor transformers."""
