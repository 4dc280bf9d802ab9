"""The records of a run, in plain Python: a line per scored round, a line per completion, and a description of the run.

It knows numbers, but neither TRL nor the HTTP API.
"""
