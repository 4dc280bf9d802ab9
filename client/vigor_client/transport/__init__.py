"""One HTTP call: endpoints, connections, retries, streamed answers, typed failures.

It knows the wire contract, but nothing about a trainer's weights.
"""
