"""Runs TorchServe and the door before it in the foreground: a start that is checked, a stop that answers what is in
flight."""

NAME = "fastai-sentiment-server"
VERSION = "0.1.0"
