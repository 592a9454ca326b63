"""Pure text synthesis: the written policy, prompts, responses, near-duplicates, languages. No Ray, no models."""
