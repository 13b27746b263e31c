"""The embedded checkpoints and the program that makes them."""
