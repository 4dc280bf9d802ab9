"""Groups whose samples arrive one by one: all wait for the last, and an incomplete group is never ranked.

It knows one group at a time; it does not know which trainer sends the samples.
"""
