"""What is said of the running service: logs, metrics, traces, progress of loading, health of rewards.

It knows names and numbers, and nothing about where they come from.
"""
