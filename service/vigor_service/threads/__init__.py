"""The threads that work is put on, and their limits: one computes, others are for disks and requests.

It knows callables, and not what they do.
"""
