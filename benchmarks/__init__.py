"""Side by side with peers: `python benchmarks/run.py`; see docs/benchmarks.md."""
