"""Measures how good a model is at a task: sampled completions, metrics of them, and intervals over questions.

It knows models, tokenizers and answers. It does not use the service, and no reward depends on it.
"""
