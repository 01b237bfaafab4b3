"""``python -m omniconv``: the command line."""

from omniconv.cli import main

if __name__ == "__main__":
    main()
