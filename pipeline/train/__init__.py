"""Offline training: from recordings to a model version with a report."""
