"""The `dreamr` command."""
