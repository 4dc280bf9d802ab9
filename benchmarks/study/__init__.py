"""The study: the effect of each reward on a policy over hundreds of steps, with seeds, intervals and a random control.

``python -m benchmarks.study`` makes base models whose mistakes are known, trains them by every reward through the real
service and trainer, and writes tables, curves and a result. It knows only the programs' command lines and the records
that runs write.
"""
