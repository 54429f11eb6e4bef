"""Downstream tasks: data, labels, splits."""
