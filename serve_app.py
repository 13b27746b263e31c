"""The application that Ray Serve runs: `serve run serve_app:app`, or `serve_app:build` with a configuration file."""

from dreamr.serve.deployment import build

app = build()

__all__ = ["app", "build"]
