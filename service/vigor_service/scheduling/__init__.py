"""From waiting sequences to batches: admission, the fair queue, the scheduler, the score cache.

It knows sequences and weight versions; it knows neither requests nor files.
"""
