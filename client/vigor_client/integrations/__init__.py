"""Adapters: how other trainers take their rewards from the service.

They know the samples of those trainers by the fields they read. The client itself imports none of them.
"""
