"""The pipelines over HTTP: an OpenAI-compatible endpoint on Ray Serve, and a page that shows the reasoning."""
