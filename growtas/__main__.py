"""``python -m growtas``: runs the command line without the ``growtas`` script."""

from growtas.cli.main import main

if __name__ == "__main__":
    main()
