"""Tells, before any training, whether the rewards would help a model at a task: scores completions by all rewards.

It knows the client and the rules of rewards, and does not change weights.
"""
