"""Sweeps: what each job leaves behind, jobs that need not run again, and the table and figure at the end."""
