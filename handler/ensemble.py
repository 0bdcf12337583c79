"""An ensemble of networks: the mean of their outputs.

ULMFiT combines a forward and a backward model in this way (Howard and Ruder, ACL 2018, section 3.4).
"""

from collections.abc import Sequence

import numpy as np

from handler.exported import ModelConfig, Network, Probabilities


class Ensemble:
    """Computes the mean of the networks' outputs for the same texts.

    Args:
        config: the model's configuration.
        networks: the model's first network and the networks of `config.ensemble`, in this order.
    """

    def __init__(self, config: ModelConfig, networks: Sequence[Network]) -> None:
        directions = [member.backwards for member in config.members]
        self._networks = list(zip(networks, directions, strict=True))
        self._backwards = config.backwards

    def probabilities(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        """Compute the probabilities of the labels, (N, C).

        Args:
            ids: the token ids of N texts, in the order in which the first network reads them.
        """
        outputs = [
            network.probabilities(ids if backwards == self._backwards else [row[::-1] for row in ids])
            for network, backwards in self._networks
        ]
        mean: Probabilities = np.mean(outputs, axis=0, dtype=np.float32)
        return mean


def joined(config: ModelConfig, networks: Sequence[Network]) -> Network:
    """Return the ensemble of a model's networks, or its network if it has only one."""
    return Ensemble(config, networks) if config.ensemble else networks[0]
