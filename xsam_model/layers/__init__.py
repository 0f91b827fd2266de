"""Network layers that transformers lacks, or implements more slowly."""
