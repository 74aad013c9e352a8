"""Steps: identity, context, folder, lock and record."""
