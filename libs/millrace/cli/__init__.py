"""The `millrace` command: one file for each verb."""
