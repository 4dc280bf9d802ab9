"""The threads of the service, and their limits: one computes, others wait for disks or prepare requests.

It runs callables, and does not know what they do.
"""
