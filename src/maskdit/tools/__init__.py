"""Commands that make no artifact of a study: `plan`, `doctor` and `study`."""
