"""One model over several devices: FSDP2 holds each rank's part of every parameter, and gathers a layer while it runs.

Each rank is a process and scores its own sequences; a norm is never summed over ranks. All ranks get the same calls in
the same order, since a collective waits for all of them.
"""
