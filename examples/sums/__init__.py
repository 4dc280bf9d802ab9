"""Sums with scratch work, and small models that have learnt them with mistakes: their accuracy is known by design."""
