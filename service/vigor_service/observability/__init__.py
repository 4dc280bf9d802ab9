"""What a running service reports: logs, metrics, traces, the progress of loading, the health of rewards.

It knows names and numbers, and nothing about where they come from.
"""
