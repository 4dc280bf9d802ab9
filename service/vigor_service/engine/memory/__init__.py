"""Memory of the device: what is free, how many tokens a batch may have, what autograd keeps.

It knows bytes and passes, and not what is measured.
"""
