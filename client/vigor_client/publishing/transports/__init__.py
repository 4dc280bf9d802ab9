"""How the files of an update reach the service: HTTP, a shared directory, or torch.distributed.

It knows the files of an update, but not their contents.
"""
