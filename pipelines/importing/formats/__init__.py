"""Readers of other tools' files: each returns an EditedFile."""
