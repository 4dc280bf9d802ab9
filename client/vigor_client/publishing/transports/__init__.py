"""How the files of an update reach the service: HTTP, a shared directory, or torch.distributed.

It knows one update's files, and not what is in them.
"""
