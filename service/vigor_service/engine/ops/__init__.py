"""Arithmetic that the rules share: products, Gram matrices, sums, and the choice of the fastest implementation.

It knows tensors, and neither models nor rules.
"""
