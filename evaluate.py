"""`python evaluate.py` from a checkout; the same as `sensing-evaluate`."""

from sensing.cli.evaluate import main

if __name__ == "__main__":
    main()
