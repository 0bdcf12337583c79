"""Runs TorchServe and the door, an HAProxy in front of it, in the foreground.

The start is checked step by step, and a stop answers the requests in flight first.
"""

NAME = "fastai-sentiment-server"
VERSION = "0.1.0"
