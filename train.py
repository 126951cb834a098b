"""`python train.py` from a checkout; the same as `sensing-train`."""

from sensing.cli.train import main

if __name__ == "__main__":
    main()
