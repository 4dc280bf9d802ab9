"""Which sequences share a pass: packing without padding, microbatches, shared prompts, threads of a CPU.

It knows lengths and token ids, and not what is computed of them.
"""
