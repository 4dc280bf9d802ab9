"""Engines as actors of a Ray cluster: the only room that knows Ray, imported only if the settings ask for it."""
