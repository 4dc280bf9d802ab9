"""The records of a run, in plain Python: a line per scored round, a line per completion, and what the run is.

It knows numbers, and neither TRL nor the wire.
"""
