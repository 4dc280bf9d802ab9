"""Directories on disk: the staging of open updates, and the stored weights that a restart restores.

It knows files and locks; it does not know what an update means.
"""
