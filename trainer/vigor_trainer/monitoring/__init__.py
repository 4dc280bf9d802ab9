"""The records of a run, in plain Python: a line per scored round, and a line per completion.

It knows numbers, and neither TRL nor the wire.
"""
