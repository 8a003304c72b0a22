"""The sections of a report as HTML: each function makes the parts of one from the content."""
