"""A transformers model as the engine runs it: decoder, packed attention, experts, measured parameters.

It knows transformers; it does not know which rule measures what.
"""
