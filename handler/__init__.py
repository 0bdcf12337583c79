"""All that runs inside the model archive: a request's body becomes texts, token ids, probabilities, a reply.

`service` is TorchServe's face; the modules behind it are pure and import nothing of TorchServe's.
"""
