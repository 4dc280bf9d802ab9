"""TRL's GRPOTrainer and AsyncGRPOTrainer: the reward function, and publishing weights before they generate.

It imports TRL and torch only when one of its classes is used; it does not know `vigor-trainer`.
"""

from vigor_client.integrations.trl.async_transfer import PublishingTransfer, WeightTransfer
from vigor_client.integrations.trl.publisher import WeightPublisher
from vigor_client.integrations.trl.reward import AsyncVigorReward, VigorReward

__all__ = ["AsyncVigorReward", "PublishingTransfer", "VigorReward", "WeightPublisher", "WeightTransfer"]
