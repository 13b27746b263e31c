"""`python -m dreamr` is the command `dreamr`."""

from dreamr.cli.main import app

if __name__ == "__main__":
    app(prog_name="dreamr")
