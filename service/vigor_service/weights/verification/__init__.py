"""Checks whether the files of an update hold the model's tensors: all of them, some of them, or a delta.

It reads files and never changes weights; it does not know HTTP.
"""
