"""What verdicts say: scores with intervals, comparisons, and what thinking and training changed."""
