"""FastAPI, which has no batching. The model runs in the event loop: for a model of one millisecond that is faster than
a pool of threads, which is what `def` instead of `async def` would give."""

from fastapi import FastAPI, Request, Response

from benchmarks.servers.common import PATH, classifier
from handler.body import to_json
from handler.prediction import Prediction
from handler.reply import prediction_json

app = FastAPI()
model = classifier()


@app.post(PATH)
async def predict(request: Request) -> Response:
    text = (await request.body()).decode()
    result = prediction_json(Prediction.from_outputs(model.predict([text])[0], model.task), model.task)
    return Response(to_json(result), media_type="application/json")
