"""How the files of an update reach the service: a shared directory, or torch.distributed. HTTP is the default.

It knows one update's files, and not what is in them.
"""
