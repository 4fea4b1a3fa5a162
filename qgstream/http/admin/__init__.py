"""The paths below `/admin`, for operators. `base` checks the admin key."""
