"""From a directory, a hub name or a GGUF file to a model, with its adapter and its tokenizer.

It knows checkpoints, and refuses what is incomplete; it computes nothing.
"""
