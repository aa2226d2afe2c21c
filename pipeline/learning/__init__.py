"""The learner's parts: what it follows, what may teach, what it keeps, and when a version changes."""
