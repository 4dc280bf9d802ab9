"""The study: what each reward does to a policy over hundreds of steps, with seeds, intervals and a random control.

``python -m benchmarks.study`` makes base models whose mistakes are known, trains them by every reward through the real
service and trainer, and writes tables, curves and a result. It knows the programs from outside, and the records that
runs leave behind.
"""
