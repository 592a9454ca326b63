"""Pure labelling: verdicts, votes, controversy, distillation, rollout planning. No Ray, no models."""
