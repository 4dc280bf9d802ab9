"""The bytes of weights that both ends agree on: digests, deltas, safetensors, checkpoints, broadcasts.

It knows files and tensors, and neither requests nor who sends them.
"""
