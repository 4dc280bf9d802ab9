"""The HTTP endpoints: with app.py the only code that knows FastAPI's routing."""
