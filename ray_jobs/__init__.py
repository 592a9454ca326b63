"""Everything that touches Ray, a model or storage; one file per job."""
