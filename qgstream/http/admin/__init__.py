"""`/admin`: what operators ask and change."""
