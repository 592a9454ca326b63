"""Tasks for lm-eval that need no network: facts, grammar and sums, made by questions.py (docs/rl.md)."""
