"""Questions about what is there: plan, doctor, study. They make no artifact of a study."""
