"""The weights that serve, the requests that wait for others, and the swap between two batches.

It knows versions and digests; it does not know where their files come from.
"""
