"""What a run gives back: its result, comparisons of several, their tables, and progress on the way."""
