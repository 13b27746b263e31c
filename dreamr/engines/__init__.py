"""How one loaded model runs: the `Engine` protocol and its implementations."""
