"""The weights that are served, the requests that wait for other weights, and the swap between two batches.

It knows versions and digests; it does not know where their files come from.
"""
