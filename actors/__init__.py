"""Long-lived Ray actors around an engine, and the plain data they exchange."""
