"""Groups whose samples arrive one by one: all wait for the last, and a part is never ranked.

It knows one group at a time, and not who sends its samples.
"""
