"""The report: tables, figures and the page. Never imports torch."""
