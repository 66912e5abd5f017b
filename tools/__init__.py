"""Helpers that are no step from scans to tables: `python -m tools.NAME --help` says what each one does."""
