"""Who says what a slice shows: captioners, what they are shown, and what keeps patient data where it is."""
