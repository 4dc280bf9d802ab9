"""Squared norms of weight gradients on a GPU: each method once in torch and once as a Triton kernel that equals it.

Only the ``*_triton`` modules import Triton, and only a CUDA device makes anything import them.
"""
