"""Evaluation: metrics, inference on the scanner's grid."""
