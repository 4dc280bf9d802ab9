"""One or several runs as one self-contained page: plots over steps, and completions side by side.

It reads the records of runs and the trainer's log, and nothing else; it does not know how they came to be.
"""
