"""`python -m tiered` is `tiered-cli`."""

from tiered.cli import main

if __name__ == "__main__":
    main()
