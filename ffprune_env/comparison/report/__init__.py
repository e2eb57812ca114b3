"""The report of a comparison: Markdown, a table for the terminal, and a page with figures for the browser."""
