"""Unrolled expectation-maximisation: support prior, LMMSE, turbo loop, M-step, iteration."""
