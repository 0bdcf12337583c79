"""A stand-in for PyTorch in TorchServe's workers.

A worker imports all of PyTorch to test whether a reply is a tensor (`ts.protocol.otf_message_handler`). The handler
replies with bytes and computes without PyTorch, and the import would cost each worker 200 MB and 2 s.

To serve other models, which need PyTorch, start TorchServe by its own command `torchserve`.
"""


class Tensor:
    """The type that `ts` compares replies with. No reply is an instance of it."""
