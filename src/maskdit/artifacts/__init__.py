"""Files with a past: written atomically, hashed, with a manifest that says how they were made; and a step, which makes them."""
