"""``python -m prerank``: the command line, for launchers that take a module."""

from prerank.cli.main import run

if __name__ == "__main__":
    run()
