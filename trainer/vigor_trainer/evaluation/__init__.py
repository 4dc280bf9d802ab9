"""How good a model is at a task: completions sampled from it, what is counted of them, and intervals over questions.

It knows models, tokenizers and answers. It asks no service, and no reward depends on it.
"""
