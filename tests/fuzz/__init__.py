"""Coverage-guided fuzzing of the frame codec: ``python -m tests.fuzz.run``, see ``run``."""
