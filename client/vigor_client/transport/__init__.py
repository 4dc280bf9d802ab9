"""One HTTP call: endpoints, connections, retries, streamed answers, typed failures.

It knows the wire contract, and nothing about weights of a trainer.
"""
