"""A trainer's weights as an update: its tensors and their names, sent in full, in part or as a delta.

It knows which weights the service holds and how to send the missing ones; it does not know the trainer.
"""
