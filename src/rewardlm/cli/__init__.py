"""The command line: one file a command; torch is imported only inside the command that needs it."""
