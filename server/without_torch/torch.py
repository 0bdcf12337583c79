"""Stands in for PyTorch in TorchServe's workers, which import all of it to ask whether a reply is a tensor
(`ts.protocol.otf_message_handler`). The handler replies with bytes and computes without PyTorch; importing it would
cost each worker 200 MB and 2 s.

For models of other kinds, which need PyTorch, start TorchServe by its own command.
"""


class Tensor:
    """What no reply is an instance of."""
