"""Training: pretraining, fine-tuning and what they share."""
