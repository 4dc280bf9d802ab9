"""One weight update from opening to swap: open, receive, verify, commit; and the same again after a restart.

It knows the state of each update; it does not know HTTP, nor where files come from.
"""
