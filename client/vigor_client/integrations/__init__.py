"""Adapters: how the trainers people use take their rewards from the service. None is imported by the client itself."""
