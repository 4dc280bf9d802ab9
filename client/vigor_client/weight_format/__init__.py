"""The bytes of weights that both ends agree on: digests, deltas, safetensors, checkpoints, broadcasts.

It knows files and tensors, but neither requests nor who sends them.
"""
