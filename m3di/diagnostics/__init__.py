"""What is odd in a store, and how far its teacher, its captions and a pretrained encoder can be trusted."""

from m3di.diagnostics.diagnosis import Diagnosis, diagnose, findings
from m3di.diagnostics.duplicates import near_duplicates

__all__ = ["Diagnosis", "diagnose", "findings", "near_duplicates"]
