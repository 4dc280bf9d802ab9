"""Weight updates from opening to swap: open, receive, verify, commit; and the replay of updates after a restart.

It knows the state of each update; it knows neither HTTP nor the sources of files.
"""
