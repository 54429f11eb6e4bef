"""Captions from and to tables: CSV, TSV, JSON lines, Parquet."""
