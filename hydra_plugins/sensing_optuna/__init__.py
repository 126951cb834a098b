"""Hydra finds its plugins in this namespace: the sweeper `optuna_study`."""
