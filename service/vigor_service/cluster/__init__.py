"""Engines as actors of a Ray cluster: the only room that knows Ray, and imported only where it is asked for."""
