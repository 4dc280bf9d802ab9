"""Sources of the files of an update: the body of a request, a directory of this machine, torch.distributed.

It knows paths, bodies and broadcasts; the manager in `updates` decides when a source brings which file.
"""
