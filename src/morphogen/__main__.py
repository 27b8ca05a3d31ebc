"""`python -m morphogen` is the command `morphogen`."""

from morphogen.cli import main

if __name__ == "__main__":
    main()
