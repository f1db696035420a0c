"""``python -m knee_tune``: the same as the command ``knee-tune``."""

from knee_tune.cli import main

if __name__ == "__main__":
    main()
