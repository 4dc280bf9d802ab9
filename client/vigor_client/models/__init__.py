"""The embedded default model, the conversion of a GGUF file to a checkpoint, and checks of model names.

It knows files and the hub, but not the service.
"""
