"""Updates whose files do not come over HTTP: directories of this machine, and torch.distributed.

It knows paths and broadcasts; what becomes of the files is decided in `updates`.
"""
