"""What OpenRLHF, slime, SGLang and others send and expect, in terms of this service.

It knows their shapes; it does not know HTTP.
"""
