"""TRL's GRPOTrainer and AsyncGRPOTrainer: the reward function, and publishing weights before they generate.

What `vigor-trainer` does by the same rules is here once, for both: when a completion has ended, when weights are due,
one call for all processes, the checks of groups, the names of metrics, the check of the TRL that is installed. It
imports TRL and torch only when one of its classes is used; it does not know `vigor-trainer`.
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
