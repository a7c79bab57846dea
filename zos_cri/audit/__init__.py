"""The audit: what exists of pods and containers, held against what should by the records."""
