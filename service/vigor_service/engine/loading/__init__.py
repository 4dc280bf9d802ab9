"""Loading of a model, with its adapter and its tokenizer, from a directory, a hub name or a GGUF file.

It knows checkpoints, and refuses incomplete ones; it computes nothing.
"""
