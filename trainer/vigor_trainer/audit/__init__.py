"""Whether the rewards would help a model at a task, before any training: completions scored by all rewards.

It knows the client and the rules of rewards; it changes no weights.
"""
