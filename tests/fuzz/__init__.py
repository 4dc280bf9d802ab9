"""Requests that no honest caller sends, against a real service: ``make fuzz``.

What must hold for each: an answer below 500 (or 503 and 504, which say "later"), an event loop that is back at once,
and memory below a bound. The odd requests are hypothesis' own making, so that what fails shrinks to the least that
fails.
"""
