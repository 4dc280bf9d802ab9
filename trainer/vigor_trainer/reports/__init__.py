"""One or several runs as one self-contained page: plots over steps, and completions side by side.

It reads only the records of runs and the trainer's log; it does not know how they were made.
"""
