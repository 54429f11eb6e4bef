"""The demonstration: a cohort of real MRI and the whole path on it."""
