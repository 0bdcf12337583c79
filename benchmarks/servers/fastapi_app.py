"""FastAPI, which has no batching.

The model runs in the event loop (`async def`). For a model that takes a millisecond, this is faster than the thread
pool that FastAPI uses for `def`.
"""

from fastapi import FastAPI, Request, Response

from benchmarks.servers.common import PATH, classifier
from handler.body import to_json
from handler.prediction import Prediction
from handler.reply import prediction_json

app = FastAPI()
model = classifier()


@app.post(PATH)
async def predict(request: Request) -> Response:
    """The prediction for the text in the body."""
    text = (await request.body()).decode()
    result = prediction_json(Prediction.from_outputs(model.predict([text])[0], model.task), model.task)
    return Response(to_json(result), media_type="application/json")
