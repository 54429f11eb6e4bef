"""The pages of m3di: fine-tuning runs, evaluations, masks against masks, and stores."""
