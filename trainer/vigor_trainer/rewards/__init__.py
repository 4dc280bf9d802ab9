"""The reward functions that TRL calls: whole groups of sampled ids, scored by exactly this round's weights.

It knows the client and one round; it does not know how weights get to the service.
"""
