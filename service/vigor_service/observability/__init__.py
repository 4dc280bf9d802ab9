"""What a running service reports: logs, metrics, traces, the progress of loading, the health of rewards.

It knows names and numbers; it does not know where they come from.
"""
