"""The reward functions that TRL calls: they score whole groups of sampled ids by exactly this round's weights.

It knows the client and one round; it does not know how weights reach the service.
"""
