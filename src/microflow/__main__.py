"""`python -m microflow`: the command."""

from microflow.cli import main

if __name__ == "__main__":
    main()
