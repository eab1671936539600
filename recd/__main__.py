"""`python -m recd` is the command `recd`."""

from recd.cli import main

if __name__ == "__main__":
    main()
