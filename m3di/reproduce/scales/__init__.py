"""Sizes of the programmes, as settings files."""
