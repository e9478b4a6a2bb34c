"""The report of a run: what a person reads, as Markdown and as a page with figures."""
