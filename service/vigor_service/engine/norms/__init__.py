"""Gradient norms: the obvious reference, the fast path with its plan, the check of one against the other.

Scores without a norm take the forward pass alone. The room knows models and rules; it does not know requests or batches
of a service.
"""
