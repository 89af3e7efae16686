"""The Toxicity Meter: answers, scores, tables, tests and the audit."""
