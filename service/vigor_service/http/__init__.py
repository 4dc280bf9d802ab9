"""What every request meets around its route: connections, keys, bodies, limits, problem documents, lines.

It knows HTTP, and not what is scored.
"""
