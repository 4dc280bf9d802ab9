"""Translates what OpenRLHF, slime, SGLang and others send and expect into terms of this service.

It knows the shapes of their messages; it does not know HTTP.
"""
