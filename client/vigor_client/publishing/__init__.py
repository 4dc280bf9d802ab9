"""A trainer's weights as an update: which tensors, under which names, full, partial or as a delta.

It knows what the service holds and how to send what it lacks; it does not know who trains.
"""
