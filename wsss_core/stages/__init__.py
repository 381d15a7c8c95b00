"""The work of the rules: one file per rule, with its name."""
