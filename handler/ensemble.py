"""Several networks as one: the mean of their outputs, as ULMFiT does with a forward and a backward model (Howard and
Ruder, ACL 2018, section 3.4)."""

from collections.abc import Sequence

import numpy as np

from handler.exported import ModelConfig, Network, Probabilities


class Ensemble:
    """The mean of the networks' outputs for the same texts.

    Args:
        networks: the model's own and those of `config.ensemble`, in this order.
    """

    def __init__(self, config: ModelConfig, networks: Sequence[Network]) -> None:
        directions = [member.backwards for member in config.members]
        self._networks = list(zip(networks, directions, strict=True))
        self._backwards = config.backwards

    def probabilities(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        """The labels' probabilities, (N, C), of N texts given as ids in the order in which the first network reads."""
        outputs = [
            network.probabilities(ids if backwards == self._backwards else [row[::-1] for row in ids])
            for network, backwards in self._networks
        ]
        mean: Probabilities = np.mean(outputs, axis=0, dtype=np.float32)
        return mean


def joined(config: ModelConfig, networks: Sequence[Network]) -> Network:
    """The model's one network, or its ensemble."""
    return Ensemble(config, networks) if config.ensemble else networks[0]
