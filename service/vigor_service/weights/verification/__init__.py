"""Whether the files of an update hold the model's tensors: as a whole, in part, or as a delta.

It reads files and never changes weights; it does not know HTTP.
"""
