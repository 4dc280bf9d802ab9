"""Weights that come over the wire: staged on disk, verified, then swapped between two batches."""
