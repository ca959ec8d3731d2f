"""A run as a Kubernetes manifest."""
