"""The one loop, its watchers, and what a run gives back."""
