"""Flask around `learn.predict`, as in a widely known example; it responds with the label."""

import os

from fastai.text.all import load_learner
from flask import Flask, Response, jsonify, request

from benchmarks.servers.common import PATH

app = Flask(__name__)
learner = load_learner(os.environ["BENCHMARK_LEARNER"])


@app.post(PATH)
def predict() -> Response:
    """The label of the text in the body."""
    label, _, _ = learner.predict(request.get_json()["text"])
    return jsonify(str(label))
