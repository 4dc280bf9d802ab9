"""Grouping of sequences into passes: packing without padding, microbatches, shared prompts, CPU threads.

It knows lengths and token ids, and not what is computed from them.
"""
