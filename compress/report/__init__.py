"""The report: one dataclass, and JSON, Markdown and terminal views of it."""
