"""Sums with scratch work, and small models that have learnt them with mistakes, so that their accuracy is known."""
