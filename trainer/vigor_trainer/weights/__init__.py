"""The trainer's weights on their way out: to the service after each step, and into a directory at the end.

It knows the client's publishing and Accelerate; it does not know rewards.
"""
