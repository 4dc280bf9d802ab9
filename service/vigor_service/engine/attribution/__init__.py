"""Where a norm comes from: positions of the sequence and parts of the model.

It knows one sequence at a time.
"""
