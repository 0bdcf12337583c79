"""Code that runs inside the model archive: it turns a request's body into texts, token ids, probabilities and a reply.

Only `service` knows TorchServe. The other modules import nothing of TorchServe.
"""
