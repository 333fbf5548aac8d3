"""Front-ends: one-shot and REPL. They know a ChatBackend and no torch."""
