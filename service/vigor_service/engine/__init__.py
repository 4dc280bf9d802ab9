"""Exact per-sequence gradient norms. Knows no HTTP, no schemas, no settings: plain arguments in, dataclasses out."""
