"""Squared norms of weight gradients on a GPU: each method once in torch and once as a Triton kernel that equals it.

Only the ``*_triton`` modules import Triton, and they are imported only for a CUDA device.
"""
