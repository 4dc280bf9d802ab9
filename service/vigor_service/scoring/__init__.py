"""From a request to token sequences, and from their scores to ranks and rewards.

It knows tokenizers, templates and the scheduler; it does not know HTTP.
"""
