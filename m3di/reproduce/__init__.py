"""The paper's tables and figures, and further ablations, as one resumable programme of small cells."""
