"""Arithmetic that the rules share: products, Gram matrices, sums, and which implementation is the fastest.

It knows tensors, and neither models nor rules.
"""
