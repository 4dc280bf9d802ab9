"""A run as one page of plots.

It reads records, and nothing else.
"""
