"""Publishes the trainer's weights to the service after each step, and saves them at the end.

It knows the client's publishing and Accelerate, but not rewards.
"""
