"""Data sets, the module that serves them, and batches cut from memory."""
