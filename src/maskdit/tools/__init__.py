"""Commands that make no artifact of a study: `plan`, `doctor`, `draw`, `score`, `study` and `init`."""
