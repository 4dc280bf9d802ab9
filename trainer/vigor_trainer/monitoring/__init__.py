"""The records of a run, in plain Python: one line per scored round.

It knows numbers, and neither TRL nor the wire.
"""
