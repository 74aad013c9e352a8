"""`python -m pipeline` and `accelerate launch -m pipeline` are the `bashrac` command."""

from pipeline.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
