"""Number of replicas: what a scaling policy sees, its decision, and the settings."""
