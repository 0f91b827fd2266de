"""Publishing the current rows as tables of the lakehouse formats, over the committed files; see docs/lakehouse.md."""
