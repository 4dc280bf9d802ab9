"""Gradient norms: the plain reference, the fast path with its plan, and the check of the one against the other.

Scores without a norm take the forward pass alone. This package knows models and rules; it does not know requests or
batches of a service.
"""
