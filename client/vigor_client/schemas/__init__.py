"""The wire contract of the HTTP API: the shape of every request and answer, defined once for both ends.

It knows pydantic, but neither HTTP nor how the numbers are computed.
"""
