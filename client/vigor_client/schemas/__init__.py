"""The wire contract of the HTTP API: every shape that crosses it, once, for both ends.

It knows pydantic, and neither HTTP nor what the numbers are made of.
"""
