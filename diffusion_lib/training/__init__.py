"""The loop (trainer), what a step draws (batches), and what surrounds a run."""
