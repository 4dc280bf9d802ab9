"""The light client of the VIGOR scoring service: httpx and pydantic, no torch."""

__version__ = "0.1.0"
