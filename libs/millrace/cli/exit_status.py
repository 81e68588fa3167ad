"""What the exit status of the command says."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
# `chat` has continued a text instead, because the model has no chat template.
EXIT_CONTINUED = 3
EXIT_INTERRUPTED = 130
