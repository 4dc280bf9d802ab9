"""Directories on disk: staging for updates under way, and the weights from which a restart comes back.

It knows files and locks; it does not know what an update means.
"""
