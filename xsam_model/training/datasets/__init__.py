"""Readers for the data formats that people have, as sources of training samples; each module owns one format."""
