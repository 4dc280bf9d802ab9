"""Handles what all routes share: connections, keys, bodies, limits, problem documents, streamed lines.

It knows HTTP; it does not know what is scored.
"""
