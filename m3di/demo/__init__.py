"""`m3di demo`: the whole path on a cohort of real brain MRI, with a report."""
