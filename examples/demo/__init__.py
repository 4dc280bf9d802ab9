"""The demo: a small model learns sums from its own gradients, beside one that learns from random rewards."""
