"""``python -m growtas``: the command line without the script on the path."""

from growtas.cli.main import main

if __name__ == "__main__":
    main()
