"""The embedded default model, and how a GGUF file becomes a checkpoint.

It knows files, and no service.
"""
