"""python -m hilora: the same as `hilora`."""

from hilora.cli import main

if __name__ == "__main__":
    main()
