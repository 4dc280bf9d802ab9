"""The HTTP endpoints, one file per group of paths, and their description.

With `app.py` the only code that knows FastAPI's routing; it decides nothing that is not about HTTP.
"""
