"""Commands that make no artifact of a study: `plan`, `doctor`, `draw`, `study` and `init`."""
