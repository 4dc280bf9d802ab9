"""TRL's GRPOTrainer and AsyncGRPOTrainer: the reward function, and publishing weights before they generate.

`vigor-trainer` shares the rules here: when a completion has ended, when weights are published, how one process calls
for all, the checks of groups and of the installed TRL, and the names of metrics. This package imports TRL and torch
only when one of its classes is used; it does not know `vigor-trainer`.
"""

from vigor_client.integrations.trl.async_transfer import PublishingTransfer, WeightTransfer
from vigor_client.integrations.trl.errors import UnsupportedTrlError
from vigor_client.integrations.trl.publisher import WeightPublisher
from vigor_client.integrations.trl.reward import AsyncVigorReward, VigorReward

__all__ = [
    "AsyncVigorReward",
    "PublishingTransfer",
    "UnsupportedTrlError",
    "VigorReward",
    "WeightPublisher",
    "WeightTransfer",
]
