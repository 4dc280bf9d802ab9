"""The command line of training: the trainer's own settings by subject, their help, and parsing beside TRL's.

It knows the flags and where their defaults come from; it does not know what a run does with them.
"""
