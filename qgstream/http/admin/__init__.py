"""The paths below `/admin`: what operators ask and change. `base` asks for an admin key."""
