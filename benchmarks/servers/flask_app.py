"""The known example's way: Flask around `learn.predict`, which answers with the label."""

import os

from fastai.text.all import load_learner
from flask import Flask, Response, jsonify, request

from benchmarks.servers.common import PATH

app = Flask(__name__)
learner = load_learner(os.environ["BENCHMARK_LEARNER"])


@app.post(PATH)
def predict() -> Response:
    label, _, _ = learner.predict(request.get_json()["text"])
    return jsonify(str(label))
