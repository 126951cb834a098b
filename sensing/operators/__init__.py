"""Structured linear maps between path gains and observations."""
